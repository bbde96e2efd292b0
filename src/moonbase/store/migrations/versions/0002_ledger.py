"""Balances, the ledger's entries, leases; limits and scopes of organizations, projects and keys."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_BIG_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")

# What was granted and used until now becomes two entries: a voucher, and the usage that it paid; the rest is a debt.
_SUMS = """
    SELECT o.id AS organization_id, o.granted_nano AS granted, o.created_at AS created_at,
           COALESCE((SELECT CAST(SUM(u.cost_nano) AS BIGINT) FROM usage u
                     WHERE u.organization_id = o.id AND u.currency = o.currency), 0) AS cost,
           COALESCE((SELECT MAX(u.finished_at) FROM usage u
                     WHERE u.organization_id = o.id AND u.currency = o.currency), o.created_at) AS used_at
    FROM organization o
"""
_VOUCHER_PAID = "CASE WHEN cost < granted THEN cost ELSE granted END"


def upgrade() -> None:
    _add_limits()
    _make_tables()
    _carry_over()
    op.drop_column("organization", "granted_nano")
    op.create_index("ix_organization_name", "organization", ["name"], unique=True)
    op.drop_index("ix_project_organization", "project")
    op.create_index("ix_project_organization", "project", ["organization_id", "name"], unique=True)
    op.create_index("ix_usage_entry", "usage", ["entry_id", "cost_nano"])


def _add_limits() -> None:
    for table in ("organization", "project", "key"):
        for name in ("concurrency", "rpm", "tpm", "tpd"):
            op.add_column(table, sa.Column(f"max_{name}", sa.BigInteger))
    op.add_column("key", sa.Column("expires_at", sa.BigInteger))
    op.add_column("key", sa.Column("models", sa.Text))
    op.add_column("key", sa.Column("endpoints", sa.Text))


def _make_tables() -> None:
    op.create_table(
        "balance",
        sa.Column("organization_id", sa.Text, primary_key=True),
        sa.Column("cash_nano", sa.BigInteger, nullable=False),
        sa.Column("voucher_nano", sa.BigInteger, nullable=False),
        sa.Column("leased_nano", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "entry",
        sa.Column("id", _BIG_KEY, primary_key=True),
        sa.Column("organization_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("cash_nano", sa.BigInteger, nullable=False),
        sa.Column("voucher_nano", sa.BigInteger, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_entry_organization", "entry", ["organization_id", "created_at"])
    op.create_table(
        "lease",
        sa.Column("organization_id", sa.Text, primary_key=True),
        sa.Column("process_id", sa.Text, primary_key=True),
        sa.Column("amount_nano", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_lease_process", "lease", ["process_id"])
    op.add_column("usage", sa.Column("entry_id", sa.BigInteger))


def _carry_over() -> None:
    op.execute(
        f"""
        INSERT INTO entry (organization_id, kind, cash_nano, voucher_nano, note, created_at)
        SELECT organization_id, 'credit', 0, granted, 'granted before the ledger', created_at
        FROM ({_SUMS}) AS sums WHERE granted <> 0
        """
    )
    op.execute(
        f"""
        INSERT INTO entry (organization_id, kind, cash_nano, voucher_nano, note, created_at)
        SELECT organization_id, 'usage', ({_VOUCHER_PAID}) - cost, -({_VOUCHER_PAID}), 'used before the ledger', used_at
        FROM ({_SUMS}) AS sums WHERE cost <> 0
        """
    )
    op.execute(
        """
        INSERT INTO balance (organization_id, cash_nano, voucher_nano, leased_nano)
        SELECT o.id, COALESCE(CAST(SUM(e.cash_nano) AS BIGINT), 0), COALESCE(CAST(SUM(e.voucher_nano) AS BIGINT), 0), 0
        FROM organization o LEFT JOIN entry e ON e.organization_id = o.id GROUP BY o.id
        """
    )
    op.execute(
        """
        UPDATE usage SET entry_id = (SELECT e.id FROM entry e
                                     WHERE e.organization_id = usage.organization_id AND e.kind = 'usage')
        WHERE cost_nano <> 0 AND currency = (SELECT o.currency FROM organization o
                                             WHERE o.id = usage.organization_id)
        """
    )
