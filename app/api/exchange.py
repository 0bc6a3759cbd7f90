"""Parts of one HTTP exchange that every door needs: its id, its body within bounds, its answer."""

import asyncio
import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Protocol

from starlette.types import Message, Receive, Scope, Send

from app.errors import BodyTooLarge, UnsupportedMediaType
from app.inference.identifiers import random_hex

Headers = Sequence[tuple[bytes, bytes]]

REQUEST_ID = b"x-request-id"
_SCOPE_KEY = "presage.request_id"
HEAD = "presage.head"
SHORT_WAY = "presage.short_way"
# Letters that are safe in a header, in a log line and in a URL; anything else could break the answer that repeats it.
_WELL_FORMED = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_PLAIN_JSON = b"application/json"
_JSON = re.compile(rb'application/(?:[\w.-]+\+)?json\s*(?:;\s*charset\s*=\s*"?utf-8"?\s*)?', re.IGNORECASE)

# On every answer. Nothing here is a page, to be framed, sniffed or kept; the one page that there is says so itself.
SECURITY_HEADERS: list[tuple[bytes, bytes]] = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
_OVER_TLS: list[tuple[bytes, bytes]] = [
    *SECURITY_HEADERS,
    (b"strict-transport-security", b"max-age=31536000; includeSubDomains"),
]


class Fixed:
    """Headers that are the same on many answers: as ASGI has them, and as the lines that they become."""

    __slots__ = ("lines", "pairs")

    def __init__(self, *pairs: tuple[bytes, bytes]) -> None:
        self.pairs = pairs
        self.lines = b"".join([b"%s: %s\r\n" % pair for pair in pairs])


NOTHING_FIXED = Fixed()
_JSON_TYPE = (b"content-type", b"application/json")
_FIXED_SECURITY, _FIXED_OVER_TLS = Fixed(*SECURITY_HEADERS), Fixed(*_OVER_TLS)
_JSON_ANSWER, _JSON_OVER_TLS = Fixed(_JSON_TYPE, *SECURITY_HEADERS), Fixed(_JSON_TYPE, *_OVER_TLS)
# A body up to this size is read to its end behind an early answer, so that the connection can carry another request.
_SWALLOWED_BYTES = 64 << 10

_LINGER_BYTES = 64 << 20
_LINGER_SECONDS = 2.0


class ShortWay(Protocol):
    """What our own wire offers beside ASGI, under SHORT_WAY in the scope; other servers do not have it."""

    def gone(self) -> bool:
        """Whether the caller has gone away."""

    def body_now(self) -> bytes:
        """The body, all of which has come."""

    def answer(self, status: int, fixed: Fixed, headers: Headers, body: bytes) -> bool:
        """Write a whole answer at once; False where it has to go the long way."""

    def write(self, status: int, fixed: Fixed, headers: Headers, body: bytes) -> None:
        """Write it in any case: for a request that was begun while its caller was reading."""


def _stays() -> bool:
    return False


def caller_gone(scope: Scope) -> Callable[[], bool]:
    """How to learn whether the caller still waits; on other servers' wires nobody tells, so it does."""
    wire: ShortWay | None = scope.get(SHORT_WAY)
    return _stays if wire is None else wire.gone


class Disconnected(Exception):
    """The caller went away before the body was complete; nobody waits for an answer."""


def request_id(scope: Scope) -> str:
    """The caller's `X-Request-ID` when it is well-formed, else one of our own; the same for the whole exchange."""
    known: str | None = scope.get(_SCOPE_KEY)
    if known is None:
        given = header(scope, REQUEST_ID)
        known = given.decode() if given is not None and _WELL_FORMED.fullmatch(given) else random_hex()
        scope[_SCOPE_KEY] = known
    return known


def head(scope: Scope) -> dict[bytes, bytes]:
    """The request's headers by name, in lower case; the first value of one that comes more than once."""
    known: dict[bytes, bytes] | None = scope.get(HEAD)
    if known is None:
        known = scope[HEAD] = dict(reversed(scope["headers"]))
    return known


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first value of a request header; `name` in lower case."""
    return head(scope).get(name)


def declared_length(scope: Scope) -> int:
    """The `Content-Length`, or 0 where there is none; the server has checked that it is a number."""
    value = header(scope, b"content-length")
    return int(value) if value is not None and value.isdigit() and len(value) < 20 else 0  # noqa: PLR2004


def security_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """What every answer carries; over TLS also that it should stay so."""
    return _OVER_TLS if scope["scheme"] == "https" else SECURITY_HEADERS


def fixed_on_json(scope: Scope) -> Fixed:
    """What every answer of JSON carries: its type, and the security headers."""
    return _JSON_OVER_TLS if scope["scheme"] == "https" else _JSON_ANSWER


def fixed_security(scope: Scope) -> Fixed:
    """The security headers alone."""
    return _FIXED_OVER_TLS if scope["scheme"] == "https" else _FIXED_SECURITY


def has_much_to_come(scope: Scope) -> bool:
    """Whether the body may be so large that a refusal had better end the connection."""
    return declared_length(scope) > _SWALLOWED_BYTES or header(scope, b"transfer-encoding") is not None


def check_json_head(scope: Scope) -> None:
    """Raises UnsupportedMediaType unless the head announces plain JSON."""
    found = head(scope)
    media_type = found.get(b"content-type")
    if media_type != _PLAIN_JSON and (media_type is None or not _JSON.fullmatch(media_type.strip())):
        raise UnsupportedMediaType("send the body as JSON, with the header Content-Type: application/json")
    if found.get(b"content-encoding", b"identity") != b"identity":
        raise UnsupportedMediaType("send the body uncompressed, without a Content-Encoding header")


async def read_json_body(scope: Scope, receive: Receive, most: int) -> bytes:
    """The body of a JSON request.

    Raises UnsupportedMediaType and BodyTooLarge before the body is read where the head says so, BodyTooLarge as soon
    as more than `most` bytes have come, and Disconnected.
    """
    check_json_head(scope)
    if declared_length(scope) > most:
        raise body_too_large(most)
    return await _read_body(receive, most)


async def _read_body(receive: Receive, most: int) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    chunks = [body]
    size = len(body)
    while message.get("more_body") and size <= most:
        message = await receive()
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
    if message["type"] == "http.disconnect":
        raise Disconnected
    if size > most:
        raise body_too_large(most)
    return body if len(chunks) == 1 else b"".join(chunks)


def body_too_large(most: int) -> BodyTooLarge:
    """The refusal of a body over `most` bytes."""
    return BodyTooLarge(f"the body may have at most {most} bytes", limit=most)


class CountedBody:
    """A `receive` for frameworks, which read to the end whatever comes: here they get no more than `most` bytes."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = most
        self._size = 0
        self._more = True

    @property
    def exceeded(self) -> bool:
        """Whether more has come than may."""
        return self._size > self._most

    async def __call__(self) -> Message:
        """The next message. Raises BodyTooLarge with the first byte too many, and ever after."""
        if not self.exceeded:
            message = await self._receive()
            self._size += len(message.get("body", b""))
            self._more = message.get("more_body", False)
        if self.exceeded:
            raise body_too_large(self._most)
        return message

    async def throw_away(self) -> None:
        """What still comes, for a bounded while; see `send_early_answer`."""
        if self._more:
            await _linger(self._receive)


async def send_answer(
    send: Send,
    status: int,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    fixed: Fixed = NOTHING_FIXED,
    scope: Scope | None = None,
) -> None:
    """One complete answer; its length is added to `headers`. With the request's `scope` it may go the short way."""
    headers.append((b"content-length", b"%d" % len(body)))
    wire: ShortWay | None = scope.get(SHORT_WAY) if scope is not None else None
    if wire is None or not wire.answer(status, fixed, headers, body):
        await send({"type": "http.response.start", "status": status, "headers": [*fixed.pairs, *headers]})
        await send({"type": "http.response.body", "body": body})


async def send_early_answer(
    receive: Receive, send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """An answer before the body was read to its end.

    A connection that is closed on unread bytes is reset, and the caller may never see why; so the answer goes out, what
    still comes is thrown away for a bounded while, and only then the connection closes.
    """
    headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await _linger(receive)
    await send({"type": "http.response.body", "body": b""})


async def send_refusal(
    scope: Scope, receive: Receive, send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """An answer before the body was looked at; where that is large, the connection ends with it."""
    if has_much_to_come(scope):
        await send_early_answer(receive, send, status, headers, body)
    else:
        await send_answer(send, status, headers, body)


async def _linger(receive: Receive) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            await _throw_away(receive)


async def _throw_away(receive: Receive) -> None:
    left = _LINGER_BYTES
    message: Message = await receive()
    while left > 0 and message.get("more_body"):
        left -= len(message.get("body", b""))
        message = await receive()
