"""Run by Alembic. The connection, in the transaction that `migrate` commits, is handed over in the attributes."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
