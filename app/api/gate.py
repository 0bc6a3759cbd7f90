"""The gate: what every HTTP request passes first, before any framework reads a byte of it.

It gives the request its id, hands hot routes over at once, and wraps everything else: no cookies (nothing here reads
them, and parsing a hostile one takes CPython seconds), no body over the bound, an answer even to what nobody expected,
and one log line.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.exchange import (
    REQUEST_ID,
    CountedBody,
    Headers,
    body_too_large,
    declared_length,
    request_id,
    send_answer,
    send_early_answer,
)
from app.api.hot_route import HotRoute
from app.api.json_route import JsonRoute
from app.api.problems import from_exception, render
from app.config import BoundSettings
from app.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_LONGEST_LOGGED_PATH = 200
_FAILED = 500
_MODEL = "/{model}"


class Gate:
    """Made once the routes are known."""

    def __init__(self, routes: Iterable[BaseRoute], *, root_path: str, bounds: BoundSettings, metrics: Metrics) -> None:
        routes = list(routes)
        hot = hot_routes(routes)
        # Apart, so that a path with a brace in it is no template.
        self._exact = {path: route for path, route in hot.items() if not path.endswith(_MODEL)}
        self._by_model = {path.removesuffix(_MODEL): route for path, route in hot.items() if path.endswith(_MODEL)}
        self._root_path = root_path
        self._most_bytes = _body_bounds(routes, bounds)
        self._max_body_bytes = bounds.max_body_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send, cold: ASGIApp) -> None:
        """Answer an HTTP request by a hot route, or by `cold`, the framework's own way in."""
        path: str = scope["path"]
        if self._root_path:
            path = self._below_root(scope, path)
        route = self._exact.get(path)
        parameters = {}
        if route is None:
            stem, _, last = path.rpartition("/")
            route = self._by_model.get(stem) if last else None
            parameters = {"model": last}
        if route is not None and scope["method"] == "POST":
            scope["path_params"] = parameters
            await route.handle(scope, receive, send)
        else:
            most = self._most_bytes.get(path, self._max_body_bytes)
            await self._cold(scope, receive, send, cold, most)

    def _below_root(self, scope: Scope, path: str) -> str:
        """The path without the prefix; the framework gets it with the prefix, also when a proxy has stripped it."""
        scope["root_path"] = self._root_path
        if path.startswith(self._root_path + "/"):
            return path[len(self._root_path) :]
        scope["path"] = self._root_path + path
        scope["raw_path"] = self._root_path.encode() + (scope.get("raw_path") or path.encode())
        return path

    async def _cold(self, scope: Scope, receive: Receive, send: Send, cold: ASGIApp, most: int) -> None:
        started = time.perf_counter()
        body = CountedBody(receive, most)
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
        identifier = request_id(scope)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID, identifier.encode()), *_closing(body)]
            elif body.exceeded and not message.get("more_body"):
                await send({**message, "more_body": True})
                await body.throw_away()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        failure: Exception | None = None
        try:
            if declared_length(scope) > most:
                # The framework, and with it the instrumentator, never sees this request; so it is counted here.
                await send_early_answer(receive, send_with_id, *render(body_too_large(most), identifier))
                self._metrics.record_http(scope["method"], "none", status, time.perf_counter() - started)
            else:
                await cold(scope, body, send_with_id)
        except Exception as error:  # noqa: BLE001 -- the framework answers, raises again, and would log a second time
            failure = error
            if not status:
                answer = render(from_exception(error), identifier)
                await send_answer(send_with_id, *answer)
        self._log(scope, identifier, status, time.perf_counter() - started, failure)

    def _log(self, scope: Scope, identifier: str, status: int, seconds: float, failure: Exception | None) -> None:
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        event: Mapping[str, Any] = {
            "method": scope["method"],
            "path": raw[:_LONGEST_LOGGED_PATH].decode("ascii", "backslashreplace"),
            "status": status,
            "milliseconds": round(seconds * 1000, 2),
            "request_id": identifier,
        }
        # An error is what somebody should look into; not being ready yet passes by itself.
        level = "error" if failure is not None or status == _FAILED else "warning" if status > _FAILED else "info"
        getattr(log, level)("http_request", exc_info=failure, **event)


def _closing(body: CountedBody) -> Headers:
    """A connection on which bytes are left unread cannot carry another request."""
    return [(b"connection", b"close")] if body.exceeded else []


def _body_bounds(routes: Iterable[BaseRoute], bounds: BoundSettings) -> dict[str, int]:
    """The paths that say themselves how large their bodies may be; not for paths with parameters."""
    contexts = [(c.path, c.original_route) for c in iter_route_contexts(list(routes))]
    return {p: getattr(bounds, route.max_bytes_setting) for p, route in contexts if p and isinstance(route, JsonRoute)}


def hot_routes(routes: Iterable[BaseRoute]) -> dict[str, HotRoute]:
    """Hot routes by their path template, wherever routers are nested."""
    contexts = iter_route_contexts(list(routes))
    return {c.path: c.original_route for c in contexts if c.path and isinstance(c.original_route, HotRoute)}
