"""The gate: what every HTTP request passes first, before any framework reads a byte of it.

It gives the request its id, hands hot routes over at once, and wraps everything else: who asks and whether they may, no
cookies (nothing here reads them, and parsing a hostile one takes CPython seconds), no body over the bound, an answer
even to what nobody expected, and one log line.
"""

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import BaseRoute, compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import declared
from app.api.edge import Edge
from app.api.exchange import (
    REQUEST_ID,
    CountedBody,
    Headers,
    body_too_large,
    check_json_head,
    declared_length,
    request_id,
    security_headers,
    send_answer,
    send_refusal,
)
from app.api.guard import ADMISSION, Guard
from app.api.hot_route import QUIET, HotRoute
from app.api.problems import from_exception, render
from app.config import Settings
from app.errors import MethodNotAllowed, PresageError, UnsupportedMediaType
from app.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_LONGEST_LOGGED_PATH = 200
_FAILED = 500
_NO_CONTENT = 204
_MODEL = "/{model}"


@dataclass(frozen=True, slots=True)
class ColdRoute:
    """What the gate knows of a route that FastAPI answers."""

    template: str
    pattern: re.Pattern[str]
    methods: frozenset[str]
    needed: tuple[str, ...]
    most_bytes: int


class Gate:
    """Made once the routes are known. Raises TypeError for one that does not declare who may call it."""

    def __init__(self, routes: Iterable[BaseRoute], settings: Settings, metrics: Metrics) -> None:
        routes = list(routes)
        hot = hot_routes(routes)
        # Apart, so that a path with a brace in it is no template.
        self._exact = {path: route for path, route in hot.items() if not path.endswith(_MODEL)}
        self._by_model = {path.removesuffix(_MODEL): route for path, route in hot.items() if path.endswith(_MODEL)}
        self._routes = known_routes(routes, settings)
        self._root_path = settings.server.root_path
        self._bounds = settings.bounds
        self._edge = Edge(settings.edge)
        self._metrics = metrics
        # Nothing to be asked of a request before its route, and nothing that a route would have to wait for.
        self._straight = self._edge.idle and not self._root_path and settings.cache.cache == "off"

    async def __call__(self, scope: Scope, receive: Receive, send: Send, cold: ASGIApp) -> None:
        """Answer an HTTP request by a hot route, or by `cold`, the framework's own way in."""
        path: str = scope["path"]
        if self._root_path:
            path = self._below_root(scope, path)
        if not self._edge.idle:
            self._edge.believe(scope)
            send = self._edge.sending(scope, send)
            if await self._stopped_at_the_edge(scope, receive, send, path):
                return
        route, parameters = self._hot(path)
        if route is not None and scope["method"] == "POST":
            scope["path_params"] = parameters
            await route.handle(scope, receive, send)
        else:
            await self._cold(scope, receive, send, cold, self._find(path, scope["method"]))

    def straight(self, scope: Scope) -> tuple[HotRoute, dict[str, str]] | None:
        """The route that may begin requests with such a head at once, and the parameters in its path; None for others.

        Its head announces plain JSON within the bounds, so that need not be asked for each of them.
        """
        if not self._straight or scope["method"] != "POST":
            return None
        route, parameters = self._hot(scope["path"])
        if route is None or route.bulk or declared_length(scope) > getattr(self._bounds, route.max_bytes_setting):
            return None
        try:
            check_json_head(scope)
        except UnsupportedMediaType:
            return None
        return route, parameters

    def _hot(self, path: str) -> tuple[HotRoute | None, dict[str, str]]:
        route = self._exact.get(path)
        if route is not None:
            return route, {}
        stem, _, last = path.rpartition("/")
        return (self._by_model.get(stem) if last else None), {"model": last}

    def _below_root(self, scope: Scope, path: str) -> str:
        """The path without the prefix; the framework gets it with the prefix, also when a proxy has stripped it."""
        scope["root_path"] = self._root_path
        if path.startswith(self._root_path + "/"):
            return path[len(self._root_path) :]
        scope["path"] = self._root_path + path
        scope["raw_path"] = self._root_path.encode() + (scope.get("raw_path") or path.encode())
        return path

    def _find(self, path: str, method: str) -> ColdRoute | MethodNotAllowed | None:
        """The route that FastAPI will choose, the first that fits; or that the path is there for other methods."""
        fitting = [route for route in self._routes if route.pattern.match(path)]
        found = next((route for route in fitting if method in route.methods), None)
        if found is None and fitting:
            allowed = ", ".join(sorted(set[str]().union(*(route.methods for route in fitting))))
            return MethodNotAllowed("this path does not take that method", headers=[(b"allow", allowed.encode())])
        return found

    async def _stopped_at_the_edge(self, scope: Scope, receive: Receive, send: Send, path: str) -> bool:
        """Whether the request ends here: it is addressed to somebody else, or asks only whether it may be made."""
        started = time.perf_counter()
        identifier = request_id(scope)
        try:
            self._edge.check_host(scope, path)
            allowed = self._edge.preflight(scope)
        except PresageError as error:
            status, headers, body = render(error, identifier)
        else:
            if allowed is None:
                return False
            status, headers, body = _NO_CONTENT, allowed, b""
        headers += [*security_headers(scope), (REQUEST_ID, identifier.encode())]
        await send_refusal(scope, receive, send, status, headers, body)
        self._metrics.record_http(scope["method"], "none", status, time.perf_counter() - started)
        return True

    async def _cold(
        self, scope: Scope, receive: Receive, send: Send, cold: ASGIApp, found: ColdRoute | MethodNotAllowed | None
    ) -> None:
        route = found if isinstance(found, ColdRoute) else None
        exchange = _ColdExchange(scope, receive, send, route.most_bytes if route else self._bounds.max_body_bytes)
        guard: Guard = scope["app"].guard
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
        try:
            guard.admit(scope, route.needed if route else ())
            exchange.check_length()
            if isinstance(found, MethodNotAllowed):
                raise found
        except PresageError as error:
            # The framework, and with it the instrumentator, never sees this request; so it is counted here.
            await exchange.refuse(error)
            handler = route.template if route else "none"
            self._metrics.record_http(scope["method"], handler, exchange.status, exchange.seconds)
            failure = None
        else:
            failure = await exchange.run(cold)
        _log(scope, exchange, failure)


class _ColdExchange:
    """One request that the framework answers, and what is put around its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, most_bytes: int) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._most_bytes = most_bytes
        self._body = CountedBody(receive, most_bytes)
        self._started = time.perf_counter()
        self.identifier = request_id(scope)
        self.status = 0

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._started

    def check_length(self) -> None:
        """Raises BodyTooLarge where the head says so."""
        if declared_length(self._scope) > self._most_bytes:
            raise body_too_large(self._most_bytes)

    async def run(self, cold: ASGIApp) -> Exception | None:
        """The framework's answer, or the one to what it raised, which is then returned."""
        try:
            await cold(self._scope, self._body, self.send)
        except Exception as error:  # noqa: BLE001 -- the framework answers, raises again, and would log a second time
            if not self.status:
                await send_answer(self.send, *render(from_exception(error), self.identifier))
            return error
        return None

    async def refuse(self, error: PresageError) -> None:
        """Instead of the framework, and before the body was read."""
        await send_refusal(self._scope, self._receive, self.send, *render(error, self.identifier))

    async def send(self, message: Message) -> None:
        """The framework's messages, with our headers on the first; a body over the bound ends the connection."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self._headers(message["headers"])]
        elif self._body.exceeded and not message.get("more_body"):
            await self._send({**message, "more_body": True})
            await self._body.throw_away()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def _headers(self, given: Headers) -> Headers:
        names = {name.lower() for name, _ in given}
        ours = [*security_headers(self._scope), (REQUEST_ID, self.identifier.encode())]
        if (admission := self._scope.get(ADMISSION)) is not None:
            ours += self._scope["app"].services.limits.headers(admission.grant)
        added = [pair for pair in ours if pair[0] not in names]
        # A connection on which bytes are left unread cannot carry another request.
        return [*added, (b"connection", b"close")] if self._body.exceeded else added


def _log(scope: Scope, exchange: _ColdExchange, failure: Exception | None) -> None:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    status = exchange.status
    event: Mapping[str, Any] = {
        "method": scope["method"],
        "path": raw[:_LONGEST_LOGGED_PATH].decode("ascii", "backslashreplace"),
        "status": status,
        "milliseconds": round(exchange.seconds * 1000, 2),
        "request_id": exchange.identifier,
    }
    # An error is what somebody should look into; not being ready yet passes by itself.
    level = "error" if failure is not None or status == _FAILED else "warning" if status > _FAILED else "info"
    if status in QUIET:
        level = "debug"
    getattr(log, level)("http_request", exc_info=failure, **event)


def hot_routes(routes: Iterable[BaseRoute]) -> dict[str, HotRoute]:
    """Hot routes by their path template, wherever routers are nested."""
    contexts = iter_route_contexts(list(routes))
    return {c.path: c.original_route for c in contexts if c.path and isinstance(c.original_route, HotRoute)}


def known_routes(routes: Iterable[BaseRoute], settings: Settings) -> list[ColdRoute]:
    """All of them, in the order in which FastAPI looks at them; of hot ones, what is left to it.

    Raises TypeError for one with no declaration.
    """
    found = []
    for context in iter_route_contexts(list(routes)):
        route, path = context.original_route, context.path
        if isinstance(route, APIRoute) and path is not None:
            most: int = getattr(settings.bounds, getattr(route, "max_bytes_setting", "max_body_bytes"))
            found.append(ColdRoute(path, compile_path(path)[0], frozenset(route.methods or ()), declared(route), most))
        else:
            raise TypeError(f"{route!r} is no route that can declare who may call it")
    return found
