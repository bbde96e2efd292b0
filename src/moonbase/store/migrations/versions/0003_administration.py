"""The audit log, usage by the hour and by the day, prices, and the keys of administrators."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_BIG_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_DIMENSIONS = ("organization_id", "project_id", "key_id", "model", "currency")
_COUNTS = ("requests", "failed", "prompt_miss", "prompt_hit", "prompt_write", "output", "cost_nano")
_SPANS = {"hour": 3_600_000, "day": 86_400_000}


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", _BIG_KEY, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("ix_audit_target", "audit", ["target"])
    op.create_table(
        "price",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("currency", sa.Text, primary_key=True),
        sa.Column("since", sa.Date, primary_key=True),
        *[sa.Column(name, sa.BigInteger, nullable=False) for name in ("miss", "hit", "write", "output", "created_at")],
    )
    op.create_table(
        "admin_key",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("secret_hash", sa.Text, nullable=False, unique=True),
        sa.Column("hint", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
    )
    op.create_index("ix_entry_kind", "entry", ["organization_id", "kind"])
    for span, length in _SPANS.items():
        _make_rollup(span, length)


def _make_rollup(span: str, length: int) -> None:
    op.create_table(
        f"usage_{span}",
        sa.Column("organization_id", sa.Text, primary_key=True),
        sa.Column(span, sa.BigInteger, primary_key=True),
        *[sa.Column(name, sa.Text, primary_key=True) for name in _DIMENSIONS[1:]],
        *[sa.Column(name, sa.BigInteger, nullable=False) for name in _COUNTS],
        sqlite_with_rowid=False,
    )
    op.create_index(f"ix_usage_{span}", f"usage_{span}", [span])
    sums = ", ".join([f"SUM({name})" for name in _COUNTS[2:]])
    op.execute(
        f"""
        INSERT INTO usage_{span} (organization_id, {span}, {", ".join([*_DIMENSIONS[1:], *_COUNTS])})
        SELECT organization_id, started_at - started_at % {length}, {", ".join(_DIMENSIONS[1:])},
               COUNT(*), SUM(CASE WHEN outcome = 'failed' THEN 1 ELSE 0 END), {sums}
        FROM usage GROUP BY organization_id, started_at - started_at % {length}, {", ".join(_DIMENSIONS[1:])}
        """
    )
