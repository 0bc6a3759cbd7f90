"""Clients, their API keys, and tokens that were revoked before their time, as the database has them.

Every change takes the row of the generation, so that changes come one after the other, and moves its number on in the
same transaction. So one number tells a process whether anything has changed since it last looked.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection, delete, insert, select, update

from app.storage.database import Database
from app.storage.ids import new_id
from app.storage.tables import ApiKeyRow, AuditRow, AuthGenerationRow, ClientRow, RevokedTokenRow

Kind = Literal["service", "user"]

# What there can be; nothing else is looked for, since PostgreSQL refuses to look for some of it.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
KEY_ID = re.compile(r"[a-z0-9]{12}")


@dataclass(frozen=True, slots=True)
class Client:
    """Who may ask for tokens; its secret is asked for separately."""

    name: str
    kind: Kind
    scopes: frozenset[str]
    plan: str | None
    created_at: datetime
    disabled_at: datetime | None = None
    tokens_not_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key of a client; `hash` is the SHA-256 of the whole key, in hexadecimal digits."""

    id: str
    client: str
    hash: str = field(repr=False)
    note: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


_GENERATION = str(select(AuthGenerationRow.number))


def generation(connection: Any) -> int:
    """How often anything here has changed; asked over a connection of the driver itself."""
    with closing(connection.cursor()) as cursor:
        cursor.execute(_GENERATION)
        number: int = cursor.fetchone()[0]
    return number


@contextmanager
def changing(database: Database) -> Iterator[tuple[Connection, datetime]]:
    """A transaction and its time; what is read in it stays true until its end. Raises StorageUnavailable."""
    with database.writing() as connection:
        # Waits until no other change is underway; in SQLite whoever may write is alone anyway.
        connection.execute(select(AuthGenerationRow.number).with_for_update()).one()
        yield connection, datetime.now(UTC)


def record(
    connection: Connection,
    action: str,
    subject: str,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    *,
    by: str,
    at: datetime,
) -> None:
    """Put a change on record, and let every process know that there was one."""
    connection.execute(update(AuthGenerationRow).values(number=AuthGenerationRow.number + 1))
    row = {"principal": by, "action": action, "subject": subject, "before": before, "after": after}
    connection.execute(insert(AuditRow).values(id=new_id(), at=at, **row))


def clients(connection: Connection) -> list[Client]:
    """All, by name."""
    return [_client(row) for row in connection.execute(select(*_CLIENT).order_by(ClientRow.name))]


def find_client(connection: Connection, name: str) -> Client | None:
    """The client of that name."""
    if not NAME.fullmatch(name):
        return None
    row = connection.execute(select(*_CLIENT).where(ClientRow.name == name)).one_or_none()
    return None if row is None else _client(row)


def find_with_secret(connection: Connection, name: str) -> tuple[Client, str] | None:
    """A client and the argon2id hash of its secret, by one statement: it takes as long for a name that nobody has."""
    if not NAME.fullmatch(name):
        return None
    columns = select(ClientRow.secret_hash, *_CLIENT).where(ClientRow.name == name)
    row = connection.execute(columns).one_or_none()
    return None if row is None else (_client(row[1:]), row[0])


def add_client(connection: Connection, client: Client, secret_hash: str) -> None:
    """Insert one whose name is free."""
    connection.execute(insert(ClientRow).values(secret_hash=secret_hash, **_values(client)))


def change_client(connection: Connection, client: Client, secret_hash: str | None = None) -> None:
    """Give the client of that name these values, and another secret where one is given."""
    secret = {} if secret_hash is None else {"secret_hash": secret_hash}
    connection.execute(update(ClientRow).where(ClientRow.name == client.name).values(**_values(client), **secret))


def api_keys(connection: Connection, client: str | None = None) -> list[ApiKey]:
    """All, or those of one client; oldest first."""
    statement = select(*_API_KEY).order_by(ApiKeyRow.created_at, ApiKeyRow.id)
    mine = statement if client is None else statement.where(ApiKeyRow.client == client)
    return [ApiKey(*row) for row in connection.execute(mine)]


def find_api_key(connection: Connection, identifier: str) -> ApiKey | None:
    """The key of that id."""
    if not KEY_ID.fullmatch(identifier):
        return None
    row = connection.execute(select(*_API_KEY).where(ApiKeyRow.id == identifier)).one_or_none()
    return None if row is None else ApiKey(*row)


def add_api_key(connection: Connection, key: ApiKey) -> None:
    """Insert one of a client that exists."""
    names = [column.key for column in _API_KEY]
    connection.execute(insert(ApiKeyRow).values({name: getattr(key, name) for name in names}))


def revoke_api_key(connection: Connection, identifier: str, at: datetime) -> None:
    """From now on it is refused."""
    connection.execute(update(ApiKeyRow).where(ApiKeyRow.id == identifier).values(revoked_at=at))


def revoked_tokens(connection: Connection) -> frozenset[str]:
    """The ids (`jti`) of all that are on record."""
    return frozenset(connection.scalars(select(RevokedTokenRow.jti)))


def revoke_token(connection: Connection, jti: str, *, expires_at: datetime, at: datetime) -> datetime | None:
    """Refuse it until then, or until the time on record, where that is later; returns the time on record before."""
    mine = RevokedTokenRow.jti == jti
    known = connection.scalars(select(RevokedTokenRow.expires_at).where(mine)).one_or_none()
    if known is None:
        connection.execute(insert(RevokedTokenRow).values(jti=jti, expires_at=expires_at, revoked_at=at))
    elif known < expires_at:
        connection.execute(update(RevokedTokenRow).where(mine).values(expires_at=expires_at))
    return known


def forget_revoked_tokens(connection: Connection, before: datetime) -> int:
    """Delete those that expired before then, since they are refused without us; how many there were."""
    return connection.execute(delete(RevokedTokenRow).where(RevokedTokenRow.expires_at < before)).rowcount


# In the order of the fields.
_CLIENT: Sequence[Any] = (
    ClientRow.name,
    ClientRow.kind,
    ClientRow.scopes,
    ClientRow.plan,
    ClientRow.created_at,
    ClientRow.disabled_at,
    ClientRow.tokens_not_before,
)
_API_KEY: Sequence[Any] = (
    ApiKeyRow.id,
    ApiKeyRow.client,
    ApiKeyRow.hash,
    ApiKeyRow.note,
    ApiKeyRow.created_at,
    ApiKeyRow.expires_at,
    ApiKeyRow.revoked_at,
)


def _client(row: Any) -> Client:
    name, kind, scopes, *others = row
    return Client(name, kind, frozenset(scopes), *others)


def _values(client: Client) -> dict[str, Any]:
    values = {column.key: getattr(client, column.key) for column in _CLIENT}
    return {**values, "scopes": sorted(client.scopes)}
