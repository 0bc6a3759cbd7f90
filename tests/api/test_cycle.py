"""The short way of an exchange: the same bytes as the long one, and the long one wherever the short one cannot be."""

import asyncio
import gc
import weakref
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.exchange import SHORT_WAY, Disconnected, Fixed, caller_gone, read_json_body, send_answer
from tests.support.limits import until
from tests.support.wire import Connection, listening

FIXED = Fixed((b"x-fixed", b"yes"))
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n%s\r\n{}"
LARGE = b"x" * (8 << 20)


def _run(app: ASGIApp, play: Any) -> Any:
    async def run() -> Any:
        async with listening(app) as wire:
            return await play(wire)

    return asyncio.run(run())


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"])
def test_both_ways_write_the_same(more: bytes) -> None:
    """Status, headers, body, and whether the connection goes on."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_json_body(scope, receive, 100)
        known = scope if scope["path"] == "/short" else None
        await send_answer(send, 422, [(b"x-own", b"1")], b"body", FIXED, known)

    async def play(wire: Any) -> list[Any]:
        said = []
        for path in (b"/short", b"/long"):
            connection = await wire.open()
            await connection.send(POST.replace(b" / ", b" %s " % path) % more)
            status, headers, body = await connection.answer()
            ended = await connection.reader.read(1) if more else b""
            said.append((status, headers, body, ended))
            await connection.close()
        return said

    short, long = _run(app, play)
    assert short == long
    assert short[0] == 422
    assert short[1].items() >= {"date": "today", "x-fixed": "yes", "x-own": "1"}.items()
    assert short[1].get("connection") == ("close" if more else None)


def test_who_does_not_read_gets_the_next_answer_the_long_way() -> None:
    """Which waits until there is room, so that a caller who asks and never reads does not fill our memory."""
    ways: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_json_body(scope, receive, 100)
        headers = [(b"content-length", b"%d" % len(LARGE))]
        ways.append(scope[SHORT_WAY].answer(200, FIXED, headers, LARGE))
        if not ways[-1]:
            await send_answer(send, 200, headers[:0], LARGE, FIXED, scope)

    async def play(wire: Any) -> None:
        connection: Connection = await wire.open()
        await connection.send(POST % b"")
        await connection.send(POST % b"")
        await until(lambda: len(ways) == 2)
        for _ in range(2):
            assert (await connection.answer())[2] == LARGE
        await connection.send(POST % b"")
        assert (await connection.answer())[2] == LARGE
        await connection.close()

    _run(app, play)
    assert ways == [True, False, True]


def test_an_answer_to_nobody_is_no_failure() -> None:
    """The application learns that the caller has gone, and what it says all the same goes nowhere."""
    came, ended = asyncio.Event(), asyncio.Event()
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        gone = caller_gone(scope)
        await read_json_body(scope, receive, 100)
        seen.append(gone())
        came.set()
        await until(gone)
        await send_answer(send, 200, [], b"nobody reads this", FIXED, scope)
        seen.append("said")
        ended.set()

    async def play(wire: Any) -> None:
        connection = await wire.open()
        await connection.send(POST % b"")
        await came.wait()
        await connection.close()
        await ended.wait()

    _run(app, play)
    assert seen == [False, "said"]


def test_half_a_body_is_none() -> None:
    """A caller that closes the connection before the body is complete is taken for gone."""
    seen = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(Disconnected):
            await read_json_body(scope, receive, 100)
        seen.set()

    async def play(wire: Any) -> None:
        connection = await wire.open()
        await connection.send((POST % b"")[:-1])
        await connection.close()
        await seen.wait()

    _run(app, play)


def test_head_is_answered_without_a_body() -> None:
    """Each time, though its head is known from the second time on."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send_answer(send, 200, [], b"not for HEAD" if scope["method"] == "HEAD" else b"for GET")

    async def play(wire: Any) -> None:
        connection = await wire.open()
        for _ in range(3):
            await connection.send(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = await connection.reader.readuntil(b"\r\n\r\n")
            assert b"content-length: 12" in head
            await connection.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await connection.answer())[2] == b"for GET"
        await connection.close()

    _run(app, play)


@pytest.mark.parametrize("close_early", [False, True])
def test_an_exchange_leaves_nothing_for_the_garbage_collector(*, close_early: bool) -> None:
    """Whether it was answered or its caller left: what it held is gone when it is over."""
    held: list[weakref.ref[Any]] = []
    over = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        held.append(weakref.ref(scope[SHORT_WAY]))
        gone = caller_gone(scope)
        await read_json_body(scope, receive, 100)
        if close_early:
            await until(gone)
        await send_answer(send, 200, [], b"{}", FIXED, scope)
        over.set()

    async def play(wire: Any) -> None:
        connection = await wire.open()
        await connection.send(POST % b"")
        if not close_early:
            await connection.answer()
        await connection.close()
        await over.wait()
        for _ in range(20):
            await asyncio.sleep(0.001)

    gc.disable()
    try:
        _run(app, play)
        assert [reference() for reference in held] == [None]
    finally:
        gc.enable()
