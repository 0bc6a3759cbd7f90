"""`/admin`: clients, their keys, and tokens that must go, for administrators; `python -m app clients` does the same.

A change bites here at once, and in every other process within a second.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from app.api.access import needs
from app.api.deps import PrincipalDep, ServicesDep
from app.api.instants import StoredInstant
from app.api.json_route import JsonRoute
from app.api.offload import on_thread
from app.api.problems import REFUSALS, problems
from app.auth.clients import Changes
from app.auth.principal import LEAST
from app.auth.tokens import InvalidToken, read_unverified
from app.errors import (
    ClientExists,
    ClientNotFound,
    FieldError,
    InvalidInput,
    MalformedJson,
    PresageError,
    StorageUnavailable,
    UnsupportedMediaType,
)
from app.pipelines.rows import STRICT
from app.storage.clients import ApiKey, Client, Kind
from app.wiring import Services

T = TypeVar("T")

# A token whose end is unknown is refused for as long as any may last.
_LONGEST_TOKEN = timedelta(days=30)
_NEEDS = needs("admin")

router = APIRouter(prefix="/admin", tags=["administration"])
_with_body = APIRouter(route_class=JsonRoute)
_without_body = APIRouter()

Name = Annotated[str, Path(max_length=64, description="Of the client.")]


class ClientIn(BaseModel):
    """A client to be."""

    model_config = STRICT

    name: str
    kind: Kind = Field("service", description="A `service` has a secret that is made here, a `user` a password.")
    scopes: list[str] = Field(list(LEAST), max_length=100)
    plan: str | None = Field(None, description="A rate of its own, such as `600/minute`.")


class ClientChangesIn(BaseModel):
    """What is to be different; what is not named stays."""

    model_config = STRICT

    scopes: list[str] = Field([], max_length=100)
    plan: str | None = Field(None, description="`null`: none of its own.")
    disabled: bool = False


class RotateIn(BaseModel):
    """Whether tokens that the client has are refused from now on, too."""

    model_config = STRICT

    revoke_tokens: bool = False


class KeyIn(BaseModel):
    """An API key to be."""

    model_config = STRICT

    note: str = ""
    expires_at: StoredInstant | None = None


class RevocationIn(BaseModel):
    """Which token: itself, or its `jti`."""

    model_config = STRICT

    token: str | None = Field(None, max_length=4096)
    jti: str | None = None


class ClientOut(BaseModel):
    """A client."""

    name: str
    kind: Kind
    scopes: list[str]
    plan: str | None
    created_at: datetime
    disabled_at: datetime | None


class ClientsOut(BaseModel):
    """All clients, by name."""

    clients: list[ClientOut]


class SecretOut(BaseModel):
    """A secret, shown this once."""

    name: str
    secret: str


class KeyOut(BaseModel):
    """What is known of an API key."""

    id: str
    client: str
    note: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class KeysOut(BaseModel):
    """The API keys of a client, oldest first."""

    keys: list[KeyOut]


class NewKeyOut(BaseModel):
    """An API key, shown this once."""

    key: str


def _responses(*kinds: type[PresageError]) -> dict[int | str, dict[str, Any]]:
    return problems(*kinds, InvalidInput, StorageUnavailable, *REFUSALS)


def _body_responses(*kinds: type[PresageError]) -> dict[int | str, dict[str, Any]]:
    return _responses(MalformedJson, UnsupportedMediaType, *kinds)


@_without_body.get("/clients", responses=_responses(), openapi_extra=_NEEDS)
async def list_clients(services: ServicesDep) -> ClientsOut:
    """List the clients."""
    found = await on_thread(services.clients.list)
    return ClientsOut(clients=[_client(client) for client in found])


@_with_body.post("/clients", status_code=201, responses=_body_responses(ClientExists), openapi_extra=_NEEDS)
async def add_client(asked: ClientIn, services: ServicesDep, principal: PrincipalDep) -> SecretOut:
    """Register a client; its secret is shown this once."""
    by = principal.subject
    secret = await _changed(
        services,
        lambda: services.clients.add(asked.name, by=by, kind=asked.kind, scopes=asked.scopes, plan=asked.plan),
    )
    return SecretOut(name=asked.name, secret=secret)


@_with_body.patch("/clients/{name}", responses=_body_responses(ClientNotFound), openapi_extra=_NEEDS)
async def change_client(
    name: Name, asked: ClientChangesIn, services: ServicesDep, principal: PrincipalDep
) -> ClientOut:
    """Give a client other scopes or another plan, disable it, or take it back."""
    clients, by = services.clients, principal.subject
    named = asked.model_fields_set

    def change() -> Client:
        changes: Changes = {}
        if "scopes" in named:
            changes["scopes"] = asked.scopes
        if "plan" in named:
            changes["plan"] = asked.plan
        client = clients.change(name, by=by, **changes)
        if "disabled" in named:
            client = clients.disable(name, by=by) if asked.disabled else clients.enable(name, by=by)
        return client

    return _client(await _changed(services, change))


@_with_body.post("/clients/{name}/secret", responses=_body_responses(ClientNotFound), openapi_extra=_NEEDS)
async def rotate_secret(name: Name, asked: RotateIn, services: ServicesDep, principal: PrincipalDep) -> SecretOut:
    """Give a client another secret, shown this once."""
    by, revoke = principal.subject, asked.revoke_tokens
    secret = await _changed(services, lambda: services.clients.rotate(name, by=by, revoke_tokens=revoke))
    return SecretOut(name=name, secret=secret)


@_without_body.get("/clients/{name}/keys", responses=_responses(ClientNotFound), openapi_extra=_NEEDS)
async def list_keys(name: Name, services: ServicesDep) -> KeysOut:
    """List the API keys of a client; the keys themselves are not kept."""
    found = await on_thread(lambda: services.clients.keys(name))
    return KeysOut(keys=[_key(key) for key in found])


@_with_body.post(
    "/clients/{name}/keys",
    status_code=201,
    responses=_body_responses(ClientNotFound),
    openapi_extra=_NEEDS,
)
async def add_key(name: Name, asked: KeyIn, services: ServicesDep, principal: PrincipalDep) -> NewKeyOut:
    """Make an API key for a client, shown this once."""
    by = principal.subject
    key = await _changed(
        services, lambda: services.clients.add_key(name, by=by, expires_at=asked.expires_at, note=asked.note)
    )
    return NewKeyOut(key=key)


@_without_body.delete("/keys/{key_id}", status_code=204, responses=_responses(ClientNotFound), openapi_extra=_NEEDS)
async def revoke_key(
    key_id: Annotated[str, Path(max_length=64)], services: ServicesDep, principal: PrincipalDep
) -> Response:
    """Refuse an API key from now on."""
    await _changed(services, lambda: services.clients.revoke_key(key_id, by=principal.subject))
    return Response(status_code=204)


@_with_body.post("/revocations", status_code=204, responses=_body_responses(), openapi_extra=_NEEDS)
async def revoke_token(asked: RevocationIn, services: ServicesDep, principal: PrincipalDep) -> Response:
    """Refuse a token from now on, whoever has it."""
    jti, expires_at = _token(asked)
    await _changed(services, lambda: services.clients.revoke_token(jti, expires_at, by=principal.subject))
    return Response(status_code=204)


async def _changed(services: Services, change: Callable[[], T]) -> T:
    """Make a change, and have it bite here before anybody hears of it."""
    result = await on_thread(change)
    await services.directory.refreshed()
    return result


def _token(asked: RevocationIn) -> tuple[str, datetime]:
    if (asked.token is None) == (asked.jti is None):
        raise InvalidInput.because([FieldError("required", "either it or jti is required", field="token")])
    if asked.jti is not None:
        return asked.jti, datetime.now(UTC) + _LONGEST_TOKEN
    try:
        jti, expires = read_unverified(asked.token or "")
        return jti, datetime.fromtimestamp(expires, UTC)
    except (InvalidToken, ValueError, OverflowError, OSError):
        raise InvalidInput.because([FieldError("invalid", "is no token", field="token")]) from None


def _client(client: Client) -> ClientOut:
    return ClientOut(
        name=client.name,
        kind=client.kind,
        scopes=sorted(client.scopes),
        plan=client.plan,
        created_at=client.created_at,
        disabled_at=client.disabled_at,
    )


def _key(key: ApiKey) -> KeyOut:
    return KeyOut(
        id=key.id,
        client=key.client,
        note=key.note,
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
    )


router.include_router(_without_body)
router.include_router(_with_body)
