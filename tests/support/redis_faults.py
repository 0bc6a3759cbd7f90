"""What can happen to Redis, and what must not happen to the event loop meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from pydantic import SecretStr

from app.config import StorageSettings
from tests.support.valkey import Valkey

Act = Callable[[Valkey], object]

# Each with what undoes it.
FAULTS: dict[str, tuple[Act, Act]] = {
    "killed": (Valkey.kill, Valkey.start),
    "frozen": (Valkey.freeze, Valkey.thaw),
    "full": (
        lambda valkey: valkey.command("CONFIG", "SET", "maxmemory", "1"),
        lambda valkey: valkey.command("CONFIG", "SET", "maxmemory", "0"),
    ),
    "replica": (
        lambda valkey: valkey.command("REPLICAOF", "127.0.0.1", "1"),
        lambda valkey: valkey.command("REPLICAOF", "NO", "ONE"),
    ),
}


def without(*rights: str) -> tuple[Act, Act]:
    """The user may no longer do that, such as `-@scripting`; and what undoes it."""
    back = [f"+{right[1:]}" for right in rights]
    return (
        lambda valkey: valkey.command("ACL", "SETUSER", "default", *rights),
        lambda valkey: valkey.command("ACL", "SETUSER", "default", *back),
    )


def blocked(lags: list[float]) -> bool:
    """Whether the loop stood still for 50 ms, time and again; once or twice may be a collection of garbage."""
    return sum(lag > 0.05 for lag in lags) > 2


@asynccontextmanager
async def loop_lag() -> AsyncIterator[list[float]]:
    """By how many seconds each step of a millisecond came late."""
    lags = [0.0]

    async def measure() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.001)
            lags.append(time.monotonic() - began - 0.001)

    task = asyncio.create_task(measure())
    try:
        yield lags
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def slowed(valkey: Valkey) -> AsyncIterator[tuple[StorageSettings, list[float]]]:
    """An address that leads to the server, and by how many seconds its answers are late: the test sets it."""
    delay = [0.0]

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, late: list[float]) -> None:
        while block := await source.read(65_536):
            await asyncio.sleep(late[0])
            target.write(block)
        target.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_read, to_write = await asyncio.open_connection("127.0.0.1", valkey.port)
        try:
            with suppress(OSError, asyncio.CancelledError):  # at the end of the loop
                await asyncio.gather(copy(reader, to_write, [0.0]), copy(to_read, writer, delay))
        finally:
            to_write.close()
            writer.close()

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield StorageSettings(redis_url=SecretStr(f"redis://127.0.0.1:{port}/0")), delay
    finally:
        server.close()
