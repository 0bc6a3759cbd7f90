"""Server: uvicorn's, with a stop that loses no request.

A stop goes so. For LAME_DUCK_SECONDS it goes on taking requests: readiness is off, so that balancers look elsewhere,
and each answer ends its connection, so that callers come back on another. Then it takes what the kernel has let in
already, and listens no more. Whoever is connected and has said nothing gets a moment to speak. What has begun is
finished within its grace, and at last everything that has a lifetime is closed.

A worker whose siblings go on leaves in the same way, but stops listening first, and is ready until it does.
"""

import asyncio
import contextlib
import ctypes
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import cast

import structlog
import uvicorn

from app.api.protocol import GuardedProtocol
from app.board import Board

log = structlog.get_logger(__name__)

# How long requests that have begun may take, and then everything that is closed at the end: the journal above all.
GRACE_SECONDS = 20
CLOSE_SECONDS = 15
# For those that are connected and have said nothing: what they said may be on its way.
_SPEAK_SECONDS = 1.0
_LOOK_SECONDS = 0.05
_ECHO_SECONDS = 0.5
# How long handshakes that have begun may take to end.
_SETTLE_SECONDS = 0.1

_SO_ATTACH_FILTER = 26
# Classic BPF on a TCP segment: load the flags; is it a SYN, then drop it, else keep it.
_NO_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


def _nothing() -> None:
    """Do it."""


class Server(uvicorn.Server):
    """Runs one application on one listening socket; with a `board` it is one worker of several."""

    def __init__(
        self,
        config: uvicorn.Config,
        protocol: type[GuardedProtocol],
        lame_duck_seconds: float,
        board: Board | None = None,
        on_started: Callable[[], None] = _nothing,
        on_stopping: Callable[[], None] = _nothing,
        end_seconds: float = GRACE_SECONDS + CLOSE_SECONDS,
    ) -> None:
        """`on_stopping` is called when the service as a whole is about to go, and not only this process.

        A stop that takes longer than its lame duck and `end_seconds` ends the process with exit code 1.
        """
        super().__init__(config)
        self._wire = protocol.wire
        self._protocol = protocol
        self._lame_duck_seconds = lame_duck_seconds
        self._board = board
        self._on_started = on_started
        self._on_stopping = on_stopping
        self._end_seconds = end_seconds
        self._in_a_hurry = False
        self._asked = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; from then on this worker counts."""
        await super().startup(sockets)
        if self._board is not None:
            self._board.note_worker_serving()
        self._on_started()

    async def on_tick(self, counter: int) -> bool:
        """As uvicorn's, ten times a second: a sign of life."""
        if self._board is not None:
            self._board.beat()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM and SIGINT stop it, the second without its lame duck; whoever asks twice does not want to wait.

        Who stops all processes of a group at once has a worker hear of it twice, from there and from its template.
        """
        now = time.monotonic()
        if not self.should_exit:
            self._asked = now
        elif self._board is None or now - self._asked > _ECHO_SECONDS:
            self.force_exit = True
        self._in_a_hurry = sig == signal.SIGINT
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Bounded, whatever hangs."""
        self._wire.closing = True
        try:
            async with asyncio.timeout(self._lame_duck_seconds + self._end_seconds):
                if not self.force_exit:
                    await self._bow_out(sockets or [])
                await super().shutdown(sockets)
        except TimeoutError:
            log.error("stopped_in_the_middle", reason="something would not end in time")
            raise SystemExit(1) from None

    async def _bow_out(self, listeners: list[socket.socket]) -> None:
        """Until nobody can be connected who has not been heard."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        lame_duck = 0.0 if self._in_a_hurry else self._lame_duck_seconds
        queues = [listener.dup() for listener in listeners]
        if self._is_the_last():
            self._on_stopping()
            await self._wait(lambda: False, began + lame_duck)
        for server in self.servers:
            server.close()
        if not self._is_the_last():
            self._note_leaving()
            await self._wait(lambda: self._is_the_last() or not self._connected(), began + lame_duck)
        if self._is_the_last():
            await self._empty(queues)
        for listener in (*queues, *listeners):
            listener.close()
        latest = max(loop.time() + _SPEAK_SECONDS, began + max(lame_duck, _SPEAK_SECONDS))
        await self._wait(lambda: not any(connection.silent for connection in self._connected()), latest)
        await self._wait(lambda: not self._connected(), began + max(lame_duck, _SPEAK_SECONDS))

    def _is_the_last(self) -> bool:
        """Whether no sibling takes who waits in the queue."""
        return self._board is None or self._board.stopping

    def _note_leaving(self) -> None:
        if self._board is not None:
            self._board.note_leaving()

    async def _wait(self, condition: Callable[[], bool], until: float) -> None:
        """For that, at the latest until then; the date goes on, and so do signs of life."""
        loop = asyncio.get_running_loop()
        turn = 0
        while loop.time() < until and not condition() and not self.force_exit:
            await self.on_tick(turn)
            turn += 1
            await asyncio.sleep(_LOOK_SECONDS)

    def _connected(self) -> list[GuardedProtocol]:
        return cast("list[GuardedProtocol]", list(self.server_state.connections))

    async def _empty(self, queues: list[socket.socket]) -> None:
        """Take everybody whose connection the kernel has completed; whoever comes later is refused at once."""
        loop = asyncio.get_running_loop()
        make = partial(
            self._protocol, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        closed = [_closes_the_door(queue) for queue in queues]
        if all(closed):
            await asyncio.sleep(_SETTLE_SECONDS)
        for queue in queues:
            queue.settimeout(0)
            while True:
                try:
                    accepted, _ = queue.accept()
                except OSError:  # nobody is left, or somebody was and has gone
                    break
                accepted.settimeout(0)
                await loop.connect_accepted_socket(make, accepted)
            queue.close()


def _closes_the_door(listener: socket.socket) -> bool:
    """Whether nobody gets in any more but who has begun to: those who come now try again a second later, as TCP does.

    To close a socket resets all that wait on it. Where the kernel has no such filter, it lets in as few as it can.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in _NO_SYN))
            program = struct.pack("HL", len(_NO_SYN), ctypes.addressof(code))
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
            return True
    listener.listen(0)
    return False
