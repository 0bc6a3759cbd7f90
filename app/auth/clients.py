"""Clients: who may call, with what, and who may no longer; for the commands and for administrators over HTTP.

Every operation says who did it (`by`), is one transaction, and blocks: call it where blocking does no harm. Secrets and
keys are returned once, when they are made; what is kept are their hashes.
"""

import hashlib
import re
import secrets
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, Unpack

from pydantic import TypeAdapter, ValidationError

from app.auth.passwords import hash_secret
from app.auth.principal import LEAST, is_scope
from app.config import Rate
from app.errors import ClientExists, ClientNotFound, FieldError, InvalidInput
from app.storage import clients as table
from app.storage.clients import NAME, ApiKey, Client, Kind
from app.storage.database import Database

SHORTEST_PASSWORD = 12
LONGEST_PASSWORD = 256
LONGEST_NOTE = 200
KEY_PREFIX = "presage"

# Names that records give to callers without a name, and to whoever sits at the terminal.
_RESERVED = frozenset({"anonymous", "operator"})
_TOKEN_ID = re.compile(r"[\x20-\x7e]{1,255}")
_RATE = TypeAdapter(Rate)


class Changes(TypedDict, total=False):
    """What may be changed of a client; what is not named stays."""

    scopes: Iterable[str]
    plan: str | None


class Clients:
    """The operations. All raise StorageUnavailable, and InvalidInput for what does not fit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self) -> Sequence[Client]:
        """All, by name."""
        with self._database.reading() as connection:
            return table.clients(connection)

    def get(self, name: str) -> Client:
        """The client of that name. Raises ClientNotFound."""
        with self._database.reading() as connection:
            return _existing(table.find_client(connection, name))

    def add(
        self,
        name: str,
        *,
        by: str,
        kind: Kind = "service",
        scopes: Iterable[str] = LEAST,
        plan: str | None = None,
        secret: str | None = None,
    ) -> str:
        """Register a client; returns its secret, made here unless a user has chosen one. Raises ClientExists."""
        scopes = frozenset(scopes)
        _refuse(_name_errors(name), _scope_errors(scopes), _plan_errors(plan), _secret_errors(secret, kind))
        secret = secret or _new_secret()
        secret_hash = hash_secret(secret)
        with table.changing(self._database) as (connection, now):
            if table.find_client(connection, name) is not None:
                raise ClientExists("a client of that name is registered already")
            client = Client(name, kind, scopes, plan, created_at=now)
            table.add_client(connection, client, secret_hash)
            table.record(connection, "client.add", name, None, _shown(client), by=by, at=now)
        return secret

    def change(self, name: str, *, by: str, **changes: Unpack[Changes]) -> Client:
        """Give a client other scopes or another plan; None is no plan of its own. Raises ClientNotFound."""
        values: dict[str, Any] = dict(changes)
        if "scopes" in changes:
            values["scopes"] = frozenset(changes["scopes"])
        _refuse(_scope_errors(values.get("scopes", LEAST)), _plan_errors(values.get("plan")))
        return self._change(name, "client.change", lambda client, _: replace(client, **values), by=by)

    def disable(self, name: str, *, by: str) -> Client:
        """Refuse a client, its keys and the tokens that it has, until it is enabled. Raises ClientNotFound."""

        def disabled(client: Client, now: datetime) -> Client:
            if client.disabled_at is not None:
                return client
            return replace(client, disabled_at=now, tokens_not_before=_next_second(now))

        return self._change(name, "client.disable", disabled, by=by)

    def enable(self, name: str, *, by: str) -> Client:
        """Take a client back; tokens from before it was disabled stay refused. Raises ClientNotFound."""
        return self._change(name, "client.enable", lambda client, _: replace(client, disabled_at=None), by=by)

    def rotate(self, name: str, *, by: str, revoke_tokens: bool = False, secret: str | None = None) -> str:
        """Give a client another secret, made here unless a user has chosen one; returns it. Raises ClientNotFound.

        Tokens that it has stay valid until they expire, unless they are revoked with it.
        """
        new = secret or _new_secret()
        secret_hash = hash_secret(new)

        def rotated(client: Client, now: datetime) -> Client:
            _refuse(_secret_errors(secret, client.kind))
            return replace(client, tokens_not_before=_next_second(now)) if revoke_tokens else client

        self._change(name, "client.rotate", rotated, by=by, secret_hash=secret_hash)
        return new

    def keys(self, name: str) -> Sequence[ApiKey]:
        """The API keys of a client, oldest first. Raises ClientNotFound."""
        with self._database.reading() as connection:
            _existing(table.find_client(connection, name))
            return table.api_keys(connection, name)

    def add_key(self, name: str, *, by: str, expires_at: datetime | None = None, note: str = "") -> str:
        """Make an API key for a client; returns the key. Raises ClientNotFound."""
        _refuse(_expiry_errors(expires_at), _note_errors(note))
        identifier = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(12))
        key = f"{KEY_PREFIX}_{identifier}_{_new_secret()}"
        with table.changing(self._database) as (connection, now):
            _existing(table.find_client(connection, name))
            kept = ApiKey(identifier, name, hash_key(key), note, created_at=now, expires_at=expires_at)
            table.add_api_key(connection, kept)
            table.record(connection, "key.add", identifier, None, _shown(kept), by=by, at=now)
        return key

    def revoke_key(self, identifier: str, *, by: str) -> None:
        """Refuse an API key from now on; again is no error. Raises ClientNotFound when there is none of that id."""
        with table.changing(self._database) as (connection, now):
            known = table.find_api_key(connection, identifier)
            if known is None:
                raise ClientNotFound("no API key of that id exists")
            if known.revoked_at is None:
                table.revoke_api_key(connection, identifier, now)
                after = _shown(replace(known, revoked_at=now))
                table.record(connection, "key.revoke", identifier, _shown(known), after, by=by, at=now)

    def revoke_token(self, jti: str, expires_at: datetime, *, by: str) -> None:
        """Refuse the token of that id; `expires_at` is when it is refused without us, and may be later than that."""
        _refuse(_token_errors(jti))
        with table.changing(self._database) as (connection, now):
            known = table.revoke_token(connection, jti, expires_at=expires_at, at=now)
            if known is None or known < expires_at:
                before = None if known is None else {"expires_at": known.isoformat()}
                after = {"expires_at": expires_at.isoformat()}
                table.record(connection, "token.revoke", jti, before, after, by=by, at=now)

    def _change(
        self,
        name: str,
        action: str,
        change: Callable[[Client, datetime], Client],
        *,
        by: str,
        secret_hash: str | None = None,
    ) -> Client:
        """What changes nothing leaves nothing on record."""
        with table.changing(self._database) as (connection, now):
            before = _existing(table.find_client(connection, name))
            after = change(before, now)
            if after != before or secret_hash is not None:
                table.change_client(connection, after, secret_hash)
                table.record(connection, action, name, _shown(before), _shown(after), by=by, at=now)
        return after


def hash_key(key: str) -> str:
    """What is kept of an API key: SHA-256 of the whole, in hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def _new_secret() -> str:
    return secrets.token_urlsafe(32)


def _next_second(now: datetime) -> datetime:
    """Tokens say in whole seconds when they were issued, so those of this second count as earlier."""
    return now.replace(microsecond=0) + timedelta(seconds=1)


def _existing(client: Client | None) -> Client:
    if client is None:
        raise ClientNotFound("no client of that name is registered")
    return client


def _shown(what: Client | ApiKey) -> dict[str, Any]:
    """What the audit says of it."""
    if isinstance(what, Client):
        shown: dict[str, Any] = {"kind": what.kind, "scopes": sorted(what.scopes), "plan": what.plan}
        instants = {"disabled_at": what.disabled_at, "tokens_not_before": what.tokens_not_before}
    else:
        shown = {"client": what.client, "note": what.note}
        instants = {"expires_at": what.expires_at, "revoked_at": what.revoked_at}
    return shown | {name: None if at is None else at.isoformat() for name, at in instants.items()}


def _refuse(*errors: Sequence[FieldError]) -> None:
    found = [error for some in errors for error in some]
    if found:
        raise InvalidInput.because(found)


def _wrong(field: str, detail: str) -> Sequence[FieldError]:
    return [FieldError("invalid", detail, field=field)]


def _name_errors(name: str) -> Sequence[FieldError]:
    if name in _RESERVED:
        return _wrong("name", "is one that records use for others")
    if NAME.fullmatch(name):
        return []
    return _wrong("name", "must be at most 64 letters, digits and . _ @ -, and begin with a letter or digit")


def _scope_errors(scopes: Iterable[str]) -> Sequence[FieldError]:
    if scopes and all(is_scope(scope) for scope in scopes):
        return []
    return _wrong("scopes", "must be one or more of predict, predict:MODEL, feedback, read, admin")


def _plan_errors(plan: str | None) -> Sequence[FieldError]:
    if plan is not None:
        try:
            _RATE.validate_python(plan)
        except ValidationError:
            return _wrong("plan", "must be a rate such as 600/minute")
    return []


def _secret_errors(secret: str | None, kind: Kind) -> Sequence[FieldError]:
    if secret is None:
        return []
    if kind == "service":
        return _wrong("secret", "of a service is made here")
    if SHORTEST_PASSWORD <= len(secret) <= LONGEST_PASSWORD:
        return []
    return _wrong("secret", f"must have from {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters")


def _expiry_errors(expires_at: datetime | None) -> Sequence[FieldError]:
    if expires_at is None or expires_at > datetime.now(UTC):
        return []
    return _wrong("expires_at", "must be in the future")


def _note_errors(note: str) -> Sequence[FieldError]:
    if len(note) <= LONGEST_NOTE and note.isprintable():
        return []
    return _wrong("note", f"must be at most {LONGEST_NOTE} printable characters")


def _token_errors(jti: str) -> Sequence[FieldError]:
    return [] if _TOKEN_ID.fullmatch(jti) else _wrong("jti", "must be at most 255 printable characters of ASCII")
