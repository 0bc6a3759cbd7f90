"""`POST /auth/token`: tokens for clients, as OAuth 2.0 has it (RFC 6749), so that its libraries work unchanged.

Wrong guesses are counted for each address, and for each client and address, so that nobody can lock a client out from
elsewhere. Where very many addresses guess at one client, each of them has one guess a minute left: its owner, who needs
one, gets in.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, unquote_plus

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app.api.access import PUBLIC
from app.api.deps import ServicesDep
from app.api.edge import budget_address
from app.api.exchange import header, request_id
from app.api.offload import on_thread
from app.api.problems import MEDIA_TYPE, problems, render
from app.auth.directory import find_client
from app.auth.principal import is_scope
from app.errors import (
    InvalidClient,
    InvalidGrant,
    InvalidScope,
    InvalidTokenRequest,
    PresageError,
    RateLimited,
    StorageUnavailable,
    UnauthorizedClient,
    UnsupportedGrantType,
)
from app.limits.limiter import Grant, RateLimits
from app.storage.clients import NAME, Client, Kind
from app.wiring import Services

log = structlog.get_logger(__name__)

router = APIRouter(prefix="/auth", tags=["access"])

_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"
_MOST_BYTES = 16 << 10
_MOST_FIELDS = 20
_LONGEST_SECRET = 1024
_BASIC_CHALLENGE = (b"www-authenticate", b'Basic realm="presage", charset="UTF-8"')
_FROM_ADDRESS = "30/minute"
_FROM_ADDRESS_FOR_CLIENT = "6/minute"
_FOR_CLIENT = "60/minute"
_FROM_ADDRESS_UNDER_SIEGE = "1/minute"
# Must be asked for by name.
_NEVER_BY_DEFAULT = {"admin"}
_DATABASE_SECONDS = 5.0

GrantType = Literal["client_credentials", "password"]
_KIND: Mapping[GrantType, Kind] = {"client_credentials": "service", "password": "user"}


# In the form of RFC 6749, but for what the gate refuses before anybody looks at the request.
_RESPONSES = problems(InvalidTokenRequest, InvalidClient, RateLimited, StorageUnavailable)
for _response_of in _RESPONSES.values():
    _response_of["content"] = dict.fromkeys((_JSON, MEDIA_TYPE), *_response_of["content"].values())


class TokenForm(BaseModel):
    """What is sent, as a form; a client may authenticate with HTTP Basic instead of `client_id` and `client_secret`."""

    grant_type: GrantType
    scope: str = Field("", description="Scopes, by spaces; without it, all that the client may have but `admin`.")
    client_id: str = Field("", description="For `client_credentials`.")
    client_secret: str = Field("", json_schema_extra={"format": "password"})
    username: str = Field("", description="For `password`: the name of a client of the kind `user`.")
    password: str = Field("", json_schema_extra={"format": "password"})


class TokenOut(BaseModel):
    """A token for access."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 -- the kind, and no secret
    expires_in: int = Field(description="Seconds.", examples=[3600])
    scope: str = Field(description="What it permits, by spaces.", examples=["predict"])


@dataclass(frozen=True, slots=True)
class _Asked:
    grant_type: GrantType
    name: str
    secret: str
    scope: str
    by_basic: bool


@router.post(
    "/token",
    response_model=TokenOut,
    responses=_RESPONSES,
    openapi_extra={
        **PUBLIC,
        "requestBody": {"required": True, "content": {_FORM: {"schema": TokenForm.model_json_schema()}}},
    },
)
async def issue_token(request: Request, services: ServicesDep) -> Response:
    """Get a token with the secret of a client, or with the name and password of a user."""
    try:
        asked = _asked(_form(request, await request.body()), request)
        answer = await _issue(asked, services, budget_address(request.scope))
    except PresageError as error:
        return _refusal(error, request)
    return _response(200, [], answer.model_dump_json().encode())


async def _issue(asked: _Asked, services: Services, address: str) -> TokenOut:
    with _counting(services.limits, asked.name, address):
        client = await _authenticate(asked, services)
    scopes = _granted(asked.scope, client)
    seconds = services.settings.auth.token_seconds
    token = services.authenticator.issue(client.name, scopes, seconds)
    log.info("token_issued", client=client.name, scopes=sorted(scopes))
    return TokenOut(access_token=token, expires_in=seconds, scope=" ".join(sorted(scopes)))


async def _authenticate(asked: _Asked, services: Services) -> Client:
    """The client whose secret that is. What is wrong shows neither in the answer nor in how long it takes."""
    found = await on_thread(lambda: find_client(services.database, asked.name), seconds=_DATABASE_SECONDS)
    client, secret_hash = found or (None, None)
    right = await services.passwords.verify(secret_hash, asked.secret)
    if client is None or not right or client.disabled_at is not None:
        # Of a name that nobody has, nothing is said: it may be a secret in the wrong place.
        log.info("token_refused", client=client.name if client is not None else None)
        if asked.grant_type == "password":
            raise InvalidGrant("the name or the password is wrong")
        raise InvalidClient("the client or its secret is wrong", headers=[_BASIC_CHALLENGE] if asked.by_basic else [])
    if client.kind != _KIND[asked.grant_type]:
        raise UnauthorizedClient(f"a client of the kind {client.kind} does not get tokens by {asked.grant_type}")
    return client


@contextmanager
def _counting(limits: RateLimits, name: str, address: str) -> Iterator[None]:
    """Refuses a guess where too many were wrong, and counts this one if it is.

    Nothing is taken while a secret is being verified: many right ones may come at once, and no more wrong ones can than
    are verified at once.
    """
    for taken in _take(limits, name, address):
        limits.give_back(taken)
    try:
        yield
    except (InvalidClient, InvalidGrant):
        with suppress(RateLimited):
            _take(limits, name, address)
        raise


def _take(limits: RateLimits, name: str, address: str) -> list[Grant]:
    """One guess from everything that it counts for. Raises RateLimited, and has taken nothing then."""
    key = name if NAME.fullmatch(name) else "?"
    rates = {f"address {address}": _FROM_ADDRESS, f"client {key} {address}": _FROM_ADDRESS_FOR_CLIENT}
    taken: list[Grant] = []
    try:
        for what, rate in rates.items():
            taken.append(limits.attempt(what, rate))
        try:
            taken.append(limits.attempt(f"client {key}", _FOR_CLIENT))
        except RateLimited:
            taken.append(limits.attempt(f"siege {key} {address}", _FROM_ADDRESS_UNDER_SIEGE))
    except RateLimited:
        for grant in taken:
            limits.give_back(grant)
        raise
    return taken


def _granted(scope: str, client: Client) -> frozenset[str]:
    wanted = frozenset(scope.split()) or client.scopes - _NEVER_BY_DEFAULT
    held = client.scopes | {verb for verb in wanted if verb.partition(":")[0] in client.scopes}
    if not wanted or not wanted <= held or not all(map(is_scope, wanted)):
        raise InvalidScope("a scope is unknown, or more than this client may have")
    return wanted


def _form(request: Request, body: bytes) -> dict[str, str]:
    media_type = (header(request.scope, b"content-type") or b"").partition(b";")[0].strip().lower()
    if media_type != _FORM.encode() or len(body) > _MOST_BYTES:
        raise InvalidTokenRequest(f"send a form of at most {_MOST_BYTES} bytes, with Content-Type: {_FORM}")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise InvalidTokenRequest("the form cannot be read") from None
    if len(dict(pairs)) < len(pairs):
        raise InvalidTokenRequest("a parameter comes twice")
    return dict(pairs)


def _asked(form: Mapping[str, str], request: Request) -> _Asked:
    grant_type, scope = form.get("grant_type"), form.get("scope", "")
    if grant_type == "password":
        return _Asked("password", *_both(form.get("username"), form.get("password")), scope, by_basic=False)
    if grant_type is None:
        raise InvalidTokenRequest("grant_type is required")
    if grant_type != "client_credentials":
        raise UnsupportedGrantType("grant_type must be client_credentials or password")
    basic = _basic([value for name, value in request.scope["headers"] if name == b"authorization"])
    if basic is not None and ("client_secret" in form or form.get("client_id", basic[0]) != basic[0]):
        raise InvalidTokenRequest("authenticate either with HTTP Basic or with client_id and client_secret")
    given = basic or (form.get("client_id"), form.get("client_secret"))
    return _Asked("client_credentials", *_both(*given), scope, by_basic=basic is not None)


def _both(name: str | None, secret: str | None) -> tuple[str, str]:
    if not name or not secret:
        raise InvalidTokenRequest("the name and the secret are required")
    if len(secret) > _LONGEST_SECRET:
        raise InvalidTokenRequest(f"a secret has at most {_LONGEST_SECRET} characters")
    return name, secret


def _basic(given: list[bytes]) -> tuple[str, str] | None:
    if not given:
        return None
    if len(given) > 1 or given[0][:6].lower() != b"basic ":
        raise InvalidTokenRequest("a client authenticates with one header, Authorization: Basic")
    try:
        name, colon, secret = base64.b64decode(given[0][6:], validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidTokenRequest("the Authorization header cannot be read") from None
    if not colon:
        raise InvalidTokenRequest("the Authorization header cannot be read")
    return unquote_plus(name), unquote_plus(secret)


def _refusal(error: PresageError, request: Request) -> Response:
    """The members that RFC 6749 wants, and beside them those of every other problem here."""
    known = isinstance(error, InvalidTokenRequest)
    name = error.code if known else "temporarily_unavailable"
    error.members = {**error.members, "error": name, "error_description": error.detail}
    status, headers, body = render(error, request_id(request.scope))
    return _response(status, [pair for pair in headers if pair[0] != b"content-type"], body)


def _response(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> Response:
    response = Response(body, status, media_type=_JSON, headers={"Pragma": "no-cache"})
    response.raw_headers += [*headers, (b"cache-control", b"no-store")]
    return response
