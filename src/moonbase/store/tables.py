"""The tables as the newest migration leaves them. A test compares the two."""

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, MetaData, Table, Text

metadata = MetaData()

organization = Table(
    "organization",
    metadata,
    Column("id", Text, primary_key=True),
    Column("uid", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("tier", Integer, nullable=False),
    Column("currency", Text, nullable=False),
    Column("granted_nano", BigInteger, nullable=False),
    Column("postpaid", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

project = Table(
    "project",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization_id", Text, ForeignKey("organization.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index("ix_project_organization", "organization_id"),
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
    Column("revoked_at", BigInteger),
    Index("ix_key_project", "project_id"),
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
    # Sums over an organization, whole or in a span of time, are answered from this index alone.
    Index("ix_usage_organization", "organization_id", "currency", "started_at", "cost_nano"),
)
