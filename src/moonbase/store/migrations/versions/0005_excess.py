"""How far leases may exceed what is available, for what requests have cost beyond what was held for them."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("balance", sa.Column("excess_nano", sa.BigInteger, nullable=False, server_default="0"))
