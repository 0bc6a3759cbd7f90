"""Our own wire on a socket of this process, in front of an application that a test has written."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from app.api.connections import Wire
from app.api.protocol import guarded
from app.config import Settings
from app.telemetry.metrics import Metrics
from tests.support.limits import until


@dataclass
class Listening:
    """Where it listens, and what its connections share."""

    port: int
    shared: Wire
    opened: list["Connection"] = field(default_factory=list)

    async def open(self) -> "Connection":
        """A connection of one's own, closed at the end if not before."""
        self.opened.append(Connection(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.opened[-1]


@dataclass
class Connection:
    """A client of the wire, for code that runs on the same loop."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *pieces: bytes) -> None:
        """Each as a segment of its own, once the one before has been seen."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            for _ in range(4):  # turns of the loop in which the other side reads
                await asyncio.sleep(0.001)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(first.split()[1]), headers, body

    async def close(self) -> None:
        """From this side."""
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[Listening]:
    """The wire, on a free port, until the block ends."""
    protocol = guarded(Settings(), Metrics())
    config: Any = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None, server_header=False)
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"today")]
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    listening = Listening(server.sockets[0].getsockname()[1], protocol.wire)
    async with server:
        try:
            yield listening
        finally:
            for connection in listening.opened:
                await connection.close()
            await until(lambda: not state.connections)
