"""Cycle: one request and its answer on our own wire.

uvicorn's own, and beside its ASGI messages a short way for those that know it: the body at once where it has come
already, a whole answer in one write, and whether the caller is still there.
"""

import asyncio
from collections.abc import Sequence
from typing import cast

from uvicorn._types import ASGI3Application, ASGISendEvent, HTTPScope
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.api.exchange import SHORT_WAY, Fixed


class Signal:
    """An asyncio.Event for one waiter, which costs nothing while nobody waits: most bodies come with their heads."""

    __slots__ = ("_set", "_waiter")

    def __init__(self) -> None:
        self._set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Something has changed."""
        self._set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        """It has been seen."""
        self._set = False

    async def wait(self) -> None:
        """Until something has changed."""
        if not self._set:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None


class Cycle(RequestResponseCycle):
    """The application has it in the scope, under SHORT_WAY."""

    body: bytearray | bytes  # type: ignore[assignment]  # uvicorn only adds to it, and makes bytes of it
    waiting_for_100_continue = False
    access_log = False

    def __init__(self, protocol: HttpToolsProtocol, scope: HTTPScope, *, keep_alive: bool) -> None:
        """Sets what uvicorn's own does, from the protocol that it is part of; one call with twelve names costs more."""
        self.scope = scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = protocol.logger
        self.access_logger = protocol.access_logger
        self.default_headers = protocol.server_state.default_headers
        self.message_event = cast("asyncio.Event", Signal())
        self.on_response = protocol.on_response_complete
        self.disconnected = self.response_started = self.response_complete = False
        self.keep_alive = keep_alive
        self.body = bytearray()
        self.more_body = True
        self.chunked_encoding = None
        self.expected_content_length = 0

    async def send(self, message: ASGISendEvent) -> None:
        """As uvicorn's, but whoever is to come back on another connection is told."""
        if not self.keep_alive and message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            if CLOSE_HEADER not in headers:
                message = {**message, "headers": [*headers, CLOSE_HEADER]}
        await super().send(message)

    async def run_asgi(self, app: ASGI3Application) -> None:
        """One exchange, from here to its end."""
        try:
            await super().run_asgi(app)
        finally:
            self.forget()

    def forget(self) -> None:
        """A scope and a cycle that know each other would wait for the garbage collector."""
        cast("dict[str, object]", self.scope).pop(SHORT_WAY, None)

    def gone(self) -> bool:
        """Whether the connection is lost, or will carry no answer."""
        return self.disconnected

    def body_now(self) -> bytes:
        """The body, all of which has come."""
        return bytes(self.body)

    def answer(self, status: int, fixed: Fixed, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
        """Write a whole answer, unless it has to be sent as messages: its caller does not read, or it has begun."""
        if self.flow.write_paused or self.response_started:
            return False
        self.write(status, fixed, headers, body)
        return True

    def write(self, status: int, fixed: Fixed, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Write a whole answer, whose headers are ours and well-formed.

        Not for HEAD, and not for an answer that ends the connection.
        """
        if self.disconnected:
            return
        lines = [STATUS_LINE[status], fixed.lines]
        lines += [b"%s: %s\r\n" % pair for pair in (*self.default_headers, *headers)]
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        lines += (b"\r\n", body)
        self.transport.write(b"".join(lines))
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
