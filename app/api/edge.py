"""Edge: who is believed about a request, and whose pages may make one.

What proxies say of a caller counts only when they are trusted; the name that a request is addressed to must be one of
ours; and a browser lets a page of somebody else call only if it is told so.
"""

from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Scope, Send

from app.api.exchange import SHORT_WAY, header
from app.config import EdgeSettings
from app.errors import RequestRefused, UnknownHost

_HEALTH = "/health/"
_MOST_HOPS = 20
_MOST_KNOWN = 10_000
_V6_NEIGHBOURS = 64
TRUSTED_PEER = "presage.trusted_peer"
_EXPOSED = ("X-Request-ID", "X-Prediction-Id", "X-Model-Version", "RateLimit", "RateLimit-Policy", "Retry-After")
_PREFLIGHT_SECONDS = 600


class Edge:
    """What the settings say about the way a request came."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._trusted = settings.trusted_proxies
        self._known: dict[str, bool] = {}
        self._any_host = "*" in settings.allowed_hosts
        self._hosts = {host for host in settings.allowed_hosts if not host.startswith("*.")}
        self._suffixes = tuple(host[1:] for host in settings.allowed_hosts if host.startswith("*."))
        self._cors = _cors(settings.cors_origins) if settings.cors_origins else None
        self.idle = self._any_host and not self._trusted and self._cors is None

    def believe(self, scope: Scope) -> None:
        """Put the caller's address and scheme in the place of the proxy's, where a trusted proxy names them."""
        peer = (scope.get("client") or ("", 0))[0]
        if not self._trusted or not self._trusts(peer):
            return
        scope[TRUSTED_PEER] = True
        scope["client"] = (self._caller(scope, peer), 0)
        if header(scope, b"x-forwarded-proto") == b"https":
            scope["scheme"] = "https"

    def check_host(self, scope: Scope, path: str) -> None:
        """Raises UnknownHost for a request to a name that is not ours. Probes know addresses only."""
        if self._any_host or path.startswith(_HEALTH):
            return
        host = (header(scope, b"host") or b"").decode("latin-1").lower()
        if not host.endswith("]"):
            host = host.rpartition(":")[0] or host
        if host not in self._hosts and not host.endswith(self._suffixes or "\n"):
            raise UnknownHost("the request is addressed to a name that this service does not go by")

    def preflight(self, scope: Scope) -> list[tuple[bytes, bytes]] | None:
        """The headers for a browser that asks whether a page may call; None when that is not what is asked.

        Raises RequestRefused, with headers, when it may not.
        """
        if self._cors is None or scope["method"] != "OPTIONS":
            return None
        headers = Headers(scope=scope)
        if "origin" not in headers or "access-control-request-method" not in headers:
            return None
        answer = self._cors.preflight_response(headers)
        kept = [pair for pair in answer.raw_headers if not pair[0].startswith(b"content-")]
        if answer.status_code != HTTPStatus.OK:
            detail = "the page may not call: its origin, the method or a header is not allowed"
            raise RequestRefused(detail, headers=kept)
        return kept

    def sending(self, scope: Scope, send: Send) -> Send:
        """A `send` that also tells a browser whether the page may read the answer."""
        if self._cors is None or header(scope, b"origin") is None:
            return send
        scope.pop(SHORT_WAY, None)  # on which nothing is added to an answer
        return partial(self._cors.send, send=send, request_headers=Headers(scope=scope))

    def _trusts(self, peer: str) -> bool:
        known = self._known.get(peer)
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            known = self._known[peer] = within(peer, self._trusted)
        return known

    def _caller(self, scope: Scope, peer: str) -> str:
        """The last address that no trusted proxy has: what stands before it, anybody may have written."""
        listed = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        hops = b",".join(listed).decode("latin-1").split(",")[-_MOST_HOPS:]
        caller = peer
        for hop in reversed(hops):
            found = _address(hop.strip())
            if found is None:
                break
            caller = found
            if not self._trusts(found):
                break
        return caller


def budget_address(scope: Scope) -> str:
    """The address whose budget a request without a principal draws on; one IPv6 network is one caller."""
    host = str((scope.get("client") or ("", 0))[0])
    found = _parsed(host)
    if isinstance(found, IPv6Address):
        return f"{IPv6Address(int(found) >> _V6_NEIGHBOURS << _V6_NEIGHBOURS)}/{_V6_NEIGHBOURS}"
    return host if found is None else str(found)


def within(peer: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Whether an address is one of theirs."""
    found = _parsed(peer)
    return found is not None and any(found in network for network in networks)


def _address(text: str) -> str | None:
    """An address in its one spelling, with or without a port; None for anything else."""
    for candidate in (text, text.rpartition(":")[0].strip("[]"), text.strip("[]")):
        if (found := _parsed(candidate)) is not None:
            return str(found)
    return None


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """One of version 4 is that, also where a socket for both versions writes it as one of version 6."""
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found


def _cors(origins: tuple[str, ...]) -> CORSMiddleware:
    """Starlette's decisions, without its place in the way of every request. Never with a browser's own credentials."""

    async def nowhere(*_: Any) -> None:
        raise AssertionError("only asked for decisions")

    app: ASGIApp = nowhere
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "PATCH", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID"],
        allow_credentials=False,
        expose_headers=_EXPOSED,
        max_age=_PREFLIGHT_SECONDS,
    )
