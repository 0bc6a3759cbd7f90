"""Every table. Migrations in `alembic/` bring a database to this shape; a test compares the two.

A prediction's id is a UUID of version 7, so it sorts by time: windows of time and pages are ranges of ids, and the
primary key is all the index that they need.
"""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, DateTime, Double, ForeignKey, Index, MetaData, Text, TypeDecorator, Uuid
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcDateTime(TypeDecorator[datetime]):
    """An instant: aware in Python, `timestamptz` in PostgreSQL, UTC as text in SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a time that does not say where it was measured."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone is no instant")
        instant = value.astimezone(UTC)
        return instant if dialect.name == "postgresql" else instant.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 -- SQLAlchemy's signature
        """Always aware."""
        return value if value is None or value.tzinfo is not None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """Names of constraints are stated, so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        }
    )


class PredictionRow(Base):
    """One answered row; or one on which the model failed, with an error code and no output."""

    __tablename__ = "predictions"
    __table_args__ = (Index(None, "model", "version", "id"),)

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    request_id: Mapped[str] = mapped_column(Text)
    principal: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    version: Mapped[int]
    digest: Mapped[str] = mapped_column(Text)
    protocol: Mapped[str] = mapped_column(Text)
    inputs: Mapped[dict[str, Any]] = mapped_column(JSON)
    output: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    label: Mapped[str | None] = mapped_column(Text)
    probabilities: Mapped[dict[str, float] | None] = mapped_column(JSON(none_as_null=True))
    latency_ms: Mapped[float] = mapped_column(Double)
    cached: Mapped[bool]
    error: Mapped[str | None] = mapped_column(Text)


class FeedbackRow(Base):
    """What turned out to be true of a prediction, as it is known now; `revisions` counts corrections."""

    __tablename__ = "feedback"

    prediction_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    truth: Mapped[Any] = mapped_column(JSON)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    received_at: Mapped[datetime] = mapped_column(UtcDateTime)
    principal: Mapped[str] = mapped_column(Text)
    revisions: Mapped[int]


class AuditRow(Base):
    """Who changed what, from what to what; the database refuses to change or delete a row of it."""

    __tablename__ = "audit"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    principal: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text)
    before: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))


class ClientRow(Base):
    """Who may ask for tokens; a disabled one stays, since what it did is on record under its name.

    Tokens that were issued before `tokens_not_before` are refused.
    """

    __tablename__ = "clients"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    secret_hash: Mapped[str] = mapped_column(Text)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    plan: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    tokens_not_before: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ApiKeyRow(Base):
    """A key of a client.

    A key has 256 random bits, which nobody guesses at whatever speed; so its hash is a fast one, SHA-256.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    client: Mapped[str] = mapped_column(Text, ForeignKey("clients.name"))
    hash: Mapped[str] = mapped_column(Text)
    note: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class RevokedTokenRow(Base):
    """A token that is refused before it expires, and forgotten after it has."""

    __tablename__ = "revoked_tokens"

    jti: Mapped[str] = mapped_column(Text, primary_key=True)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime] = mapped_column(UtcDateTime)


class AuthGenerationRow(Base):
    """One row: how often clients, keys and revocations have changed."""

    __tablename__ = "auth_generation"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]
