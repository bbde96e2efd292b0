"""The tables as the newest migration leaves them. A test compares the two."""

from sqlalchemy import BigInteger, Boolean, Column, Date, ForeignKey, Index, Integer, MetaData, Table, Text

metadata = MetaData()


def _limits() -> list[Column[int]]:
    """Caps of their own that an organization, a project and a key may have."""
    return [Column(f"max_{name}", BigInteger) for name in ("concurrency", "rpm", "tpm", "tpd")]


organization = Table(
    "organization",
    metadata,
    Column("id", Text, primary_key=True),
    Column("uid", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("tier", Integer, nullable=False),
    Column("currency", Text, nullable=False),
    Column("postpaid", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    *_limits(),
    Index("ix_organization_name", "name", unique=True),
)

project = Table(
    "project",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organization.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    *_limits(),
    Index("ix_project_organization", "organization_id", "name", unique=True),
)

key = Table(
    "key",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("project.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("secret_hash", Text, nullable=False, unique=True),
    Column("hint", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("models", Text),
    Column("endpoints", Text),
    *_limits(),
    Index("ix_key_project", "project_id"),
)

# What the entries of an organization sum to, and how much of it processes hold as leases: as much as is available, and
# an excess where requests have cost more than was held for them.
balance = Table(
    "balance",
    metadata,
    Column("organization_id", Text, primary_key=True),
    Column("cash_nano", BigInteger, nullable=False),
    Column("voucher_nano", BigInteger, nullable=False),
    Column("leased_nano", BigInteger, nullable=False),
    Column("excess_nano", BigInteger, nullable=False, server_default="0"),
)

# Append-only. An entry of the kind `usage` is what one batch of usage records cost; they name it.
entry = Table(
    "entry",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("cash_nano", BigInteger, nullable=False),
    Column("voucher_nano", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index("ix_entry_organization", "organization_id", "created_at"),
    Index("ix_entry_kind", "organization_id", "kind"),
)

# Requests that changed balances and named a key of idempotency: the same one again changes nothing.
booking = Table(
    "booking",
    metadata,
    Column("organization_id", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

# The money of an organization that a gateway process may spend without asking.
lease = Table(
    "lease",
    metadata,
    Column("organization_id", Text, primary_key=True),
    Column("process_id", Text, primary_key=True),
    Column("amount_nano", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index("ix_lease_process", "process_id"),
)

# No foreign keys: a record of what happened is never refused for what became of its key.
usage = Table(
    "usage",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("served_by", Text, nullable=False),
    Column("prompt_miss", BigInteger, nullable=False),
    Column("prompt_hit", BigInteger, nullable=False),
    Column("prompt_write", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("price_miss", BigInteger, nullable=False),
    Column("price_hit", BigInteger, nullable=False),
    Column("price_write", BigInteger, nullable=False),
    Column("price_output", BigInteger, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("first_token_at", BigInteger),
    Column("finished_at", BigInteger, nullable=False),
    Column("entry_id", BigInteger),
    # Sums over an organization, whole or in a span of time, are answered from this index alone.
    Index("ix_usage_organization", "organization_id", "currency", "started_at", "cost_nano"),
    Index("ix_usage_entry", "entry_id", "cost_nano"),
)


def _rollup(span: str) -> Table:
    """Sums of the usage records that began in one `span` of UTC, whose start is in milliseconds.

    Kept in the transaction that adds the records.
    """
    return Table(
        f"usage_{span}",
        metadata,
        Column("organization_id", Text, primary_key=True),
        Column(span, BigInteger, primary_key=True),
        Column("project_id", Text, primary_key=True),
        Column("key_id", Text, primary_key=True),
        Column("model", Text, primary_key=True),
        Column("currency", Text, primary_key=True),
        Column("requests", BigInteger, nullable=False),
        Column("failed", BigInteger, nullable=False),
        Column("prompt_miss", BigInteger, nullable=False),
        Column("prompt_hit", BigInteger, nullable=False),
        Column("prompt_write", BigInteger, nullable=False),
        Column("output", BigInteger, nullable=False),
        Column("cost_nano", BigInteger, nullable=False),
        Index(f"ix_usage_{span}", span),
        sqlite_with_rowid=False,  # an organization's rows of a span lie together
    )


usage_hour = _rollup("hour")
usage_day = _rollup("day")

# Prices that hold in addition to the catalog's: nano-units of the currency per 1M tokens from a day on.
price = Table(
    "price",
    metadata,
    Column("model", Text, primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("since", Date, primary_key=True),
    Column("miss", BigInteger, nullable=False),
    Column("hit", BigInteger, nullable=False),
    Column("write", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

# Who may use the admin API.
admin_key = Table(
    "admin_key",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("secret_hash", Text, nullable=False, unique=True),
    Column("hint", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

# Append-only: who changed what. `detail` is JSON.
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Index("ix_audit_target", "target"),
)
