"""Straight: a request for one row on our own wire, whose body is here, without a task that waits for the model.

It does what `HotRoute.handle` does, in two halves: up to the model when the bytes have come, and the rest when the lane
calls back. A task, its future and the coroutines around it would cost as much as a small model.
"""

import asyncio
import time
from typing import Any, cast

from starlette.types import Scope

from app.api.exchange import Disconnected, Fixed, ShortWay, fixed_on_json, fixed_security
from app.api.hot_route import GONE, Call, HotRoute, stopping
from app.errors import VersionBeingLoaded
from app.inference.service import Answer
from app.inference.turns import CallerGone
from app.wiring import Services


class Exchange:
    """One request: from its bytes to the lane, and from there to its answer. It is in `running` meanwhile."""

    __slots__ = ("_call", "_question", "_route", "_running", "_scope", "_services", "_started", "_wire")

    def __init__(self, route: HotRoute, scope: Scope, wire: ShortWay, running: set[Any]) -> None:
        self._route = route
        self._scope = scope
        self._wire = wire
        self._running = running
        self._services: Services = scope["app"].services
        self._started = time.perf_counter()
        self._call: Call | None = None

    def begin(self) -> None:
        """As far as it goes before the model has answered."""
        route, services = self._route, self._services
        try:
            self._call = call = route.admit(self._scope, services, self._started, self._wire.gone)
            call.content = self._wire.body_now()
            self._running.add(self)
            self._ask(call)
        except Exception as error:  # noqa: BLE001 -- every failure becomes a problem document
            self._refuse(error)

    def _ask(self, call: Call) -> None:
        services = self._services
        try:
            self._question = question = self._route.ask(call)
        except VersionBeingLoaded as error:
            self._ask_later(call, error)
        else:
            services.predictions.ask(question.model, question.rows, call.terms, self._told)

    def _ask_later(self, call: Call, error: VersionBeingLoaded) -> None:
        """Once the version is loaded, or nobody waits any longer."""
        coming = self._services.registry.coming(error.model, error.version)
        left = call.terms.deadline - time.perf_counter()
        timer = asyncio.get_running_loop().call_later(max(0.0, left), self._give_up, error)

        def ask_again(_: object) -> None:
            timer.cancel()
            if self in self._running:
                try:
                    self._ask(call)
                except Exception as failure:  # noqa: BLE001 -- as above
                    self._refuse(failure)

        coming.add_done_callback(ask_again)

    def _give_up(self, error: Exception) -> None:
        if self in self._running:
            self._refuse(error)

    def cancel(self, *_: object, **__: object) -> None:
        """The server's grace is over; it treats us as one of its tasks."""
        if self in self._running:
            self._refuse(stopping())

    def _told(self, answer: Answer | Exception) -> None:
        if self not in self._running:
            return
        if isinstance(answer, Exception):
            self._refuse(answer)
            return
        call = cast("Call", self._call)
        try:
            reply = self._question.tell(call, answer)
            headers = self._route.headers(call, reply)
        except Exception as error:  # noqa: BLE001 -- as above
            self._refuse(error)
        else:
            self._answer(200, fixed_on_json(self._scope), headers, reply.body)

    def _refuse(self, error: Exception) -> None:
        if isinstance(error, Disconnected | CallerGone):
            self._running.discard(self)
            self._route.record(self._services, GONE, self._started)
            return
        status, headers, body = self._route.refuse(self._scope, self._services, self._call, error)
        self._answer(status, fixed_security(self._scope), headers, body)

    def _answer(self, status: int, fixed: Fixed, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self._running.discard(self)
        headers.append((b"content-length", b"%d" % len(body)))
        self._wire.write(status, fixed, headers, body)
        self._route.record(self._services, status, self._started)
