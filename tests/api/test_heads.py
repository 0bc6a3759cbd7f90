"""A head that has come before is not parsed again, and means what it would mean if it were."""

import asyncio
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from app.api.exchange import read_json_body, request_id, send_answer
from app.api.heads import KnownHeads
from tests.support.wire import Connection, listening

MOST = 2048


def _head(length: int = 2, *more: str, path: str = "/predict", method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def _scope(data: bytes, version: str = "1.1") -> dict[str, Any]:
    """What a parser makes of it."""
    first, *lines = data.partition(b"\r\n\r\n")[0].split(b"\r\n")
    method, target, _ = first.decode().split()
    path, _, query = target.partition("?")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    raw = {"raw_path": path.encode(), "query_string": query.encode(), "headers": headers, "http_version": version}
    return {"type": "http", "method": method, "path": path, "client": ("127.0.0.1", 1), **raw}


def _remembered(data: bytes, **scope: Any) -> KnownHeads:
    heads = KnownHeads(lambda _: None)
    heads.remember(data, _scope(data, **scope))
    return heads


def test_the_same_head_with_another_body_is_known() -> None:
    """The body is what comes behind the head, whatever came there before."""
    heads = _remembered(_head() + b"{}")
    found = heads.find(_head() + b"[]")
    assert found is not None
    known, body = found
    assert (body, known.body_bytes) == (b"[]", 2)
    assert (known.scope["method"], known.scope["path"]) == ("POST", "/predict")


def test_what_belongs_to_one_connection_or_one_request_is_not_kept() -> None:
    """Who called, and under which id the first request was answered."""
    heads, data = KnownHeads(lambda _: None), _head() + b"{}"
    scope = _scope(data)
    request_id(scope)
    heads.remember(data, scope)
    found = heads.find(data)
    assert found is not None
    assert set(found[0].scope) == {
        *("http_version", "method", "path", "raw_path", "query_string", "headers", "presage.head")
    }


@pytest.mark.parametrize(
    "data",
    [
        _head(),
        _head() + b"{",
        _head() + b"{} ",
        _head() + b"{}" + _head() + b"{}",
        _head()[:-1],
        _head(3) + b"{ }",
        _head(path="/Predict") + b"{}",
        _head(method="PUT") + b"{}",
        _head().replace(b"Host: localhost\r\n", b"").replace(b"\r\n\r\n", b"\r\nHost: localhost\r\n\r\n") + b"{}",
        _head().replace(b"Host:", b"host:") + b"{}",
        _head().replace(b"localhost", b"localhosT") + b"{}",
        b"\r\n" + _head() + b"{}",
        b"",
        b"\r\n\r\n",
    ],
)
def test_what_is_not_the_same_to_the_last_byte_is_parsed(data: bytes) -> None:
    """Another length, method, order or byte, less than a whole request, or more than one."""
    assert _remembered(_head() + b"{}").find(data) is None


@pytest.mark.parametrize(
    "data",
    [
        _head(2, "Connection: close") + b"{}",
        _head(2, "Connection: Upgrade", "Upgrade: h2c") + b"{}",
        _head(2, "Upgrade: websocket") + b"{}",
        _head(2, "Expect: 100-continue") + b"{}",
        _head(2, "Transfer-Encoding: chunked").replace(b"Content-Length: 2\r\n", b"") + b"2\r\n{}\r\n0\r\n\r\n",
        _head(2, "X: " + "y" * 4096) + b"{}",
        _head() + b"{}" + _head(),
        _head(),
    ],
)
def test_what_asks_for_more_than_an_answer_is_not_remembered(data: bytes) -> None:
    """It goes through the parser each time; so does what was not one whole request, and what is very long."""
    assert _remembered(data).find(data) is None


def test_the_old_version_is_not_remembered() -> None:
    """It closes the connection behind the answer."""
    data = _head() + b"{}"
    assert _remembered(data, version="1.0").find(data) is None


def test_a_request_without_a_body_is_remembered() -> None:
    """No length is none."""
    data = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    found = _remembered(data).find(data)
    assert found is not None
    assert found[1] == b""


def test_so_many_heads_are_remembered_and_no_more() -> None:
    """The one that came first is forgotten first."""
    heads = KnownHeads(lambda _: None)
    requests = [_head(path=f"/v2/predict/{number}") + b"{}" for number in range(MOST + 1)]
    for data in requests:
        heads.remember(data, _scope(data))
    assert heads.find(requests[0]) is None
    assert all(heads.find(data) for data in requests[1:])


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Say what was asked."""
    body = b"" if scope["method"] == "GET" else await read_json_body(scope, receive, 1 << 20)
    names = {"host", "x-tag"}
    said = {
        "method": scope["method"],
        "target": [scope["path"], scope["raw_path"].decode(), scope["query_string"].decode()],
        "headers": [[k.decode(), v.decode()] for k, v in scope["headers"] if k.decode() in names],
        "body": body.decode(),
        "port": scope["client"][1],
    }
    answer = json.dumps(said).encode()
    await send_answer(send, 200, [(b"x-request-id", request_id(scope).encode())], answer, scope=scope)


_PATHS = ("/a", "/a?b=c", "/b%20b")
_TAGS = ("1", "2", "11")
_BODIES = ("{}", "[]", '{"a": 1}', "")
_Request = tuple[str, str, str, bool, str]
_ONE = st.tuples(
    st.sampled_from(["POST", "PUT", "GET"]),
    st.sampled_from(_PATHS),
    st.sampled_from(_TAGS),
    st.booleans(),
    st.sampled_from(_BODIES),
)
# On which of three connections, which requests in one piece, and where that is cut.
_STORY = st.lists(
    st.tuples(st.integers(0, 2), st.lists(_ONE, min_size=1, max_size=3), st.lists(st.integers(0, 400), max_size=2)),
    min_size=1,
    max_size=12,
)


def _bytes(request: _Request) -> bytes:
    method, path, tag, tag_first, body = request
    lines = [f"X-Tag: {tag}", "Host: localhost"]
    if method != "GET":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines = lines if tag_first else lines[::-1]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + (
        body.encode() if method != "GET" else b""
    )


def _pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    return [data[start:stop] for start, stop in pairwise(places)]


@settings(max_examples=40, deadline=None)
@given(story=_STORY)
def test_each_request_is_answered_as_if_it_were_the_first(
    story: list[tuple[int, list[_Request], list[int]]],
) -> None:
    """On several connections, in one piece or several, alone or behind one another; each by an id of its own."""

    async def play() -> None:
        identifiers = []
        async with listening(_echo) as wire:
            connections = [await wire.open() for _ in range(3)]
            for which, requests, cuts in story:
                connection = connections[which]
                await connection.send(*_pieces(b"".join(map(_bytes, requests)), cuts))
                identifiers += [await _check(connection, request) for request in requests]
            for connection in connections:
                await connection.close()
        assert len(set(identifiers)) == len(identifiers)

    asyncio.run(play())


async def _check(connection: Connection, request: _Request) -> str:
    status, headers, body = await connection.answer()
    method, path, tag, tag_first, given = request
    raw, _, query = path.partition("?")
    tags = [["x-tag", tag], ["host", "localhost"]]
    assert status == 200
    assert json.loads(body) == {
        "method": method,
        "target": [raw.replace("%20", " "), raw, query],
        "headers": tags if tag_first else tags[::-1],
        "body": "" if method == "GET" else given,
        "port": connection.writer.get_extra_info("sockname")[1],
    }
    return headers["x-request-id"]


def test_on_the_wire_only_whole_requests_are_remembered() -> None:
    """One that came at once is; one in two pieces, behind another, or with something special is not."""

    async def play() -> None:
        async with listening(_echo) as wire:
            known = wire.shared.heads

            async def after(*pieces: bytes, answers: int = 1) -> bool:
                connection = await wire.open()
                await connection.send(*pieces)
                for _ in range(answers):
                    assert (await connection.answer())[0] == 200
                await connection.close()
                return known.find(b"".join(pieces)) is not None

            one = _head(path="/one") + b"{}"
            assert not await after(one[:-2], one[-2:])
            assert not await after(one[:10], one[10:])
            assert not await after(one + one, answers=2)
            assert known.find(one) is None
            assert not await after(_head(2, "Connection: close", path="/two") + b"{}")
            assert not await after(_head(2, "Connection: Upgrade", "Upgrade: h2c", path="/three") + b"{}")
            chunked = _head(path="/four").replace(b"Content-Length: 2", b"Transfer-Encoding: chunked")
            assert not await after(chunked + b"2\r\n{}\r\n0\r\n\r\n")
            assert await after(one)
            assert await after(one)
            assert await after(_head(2, "Connection: keep-alive", path="/five") + b"{}")

    asyncio.run(play())


def test_a_head_is_known_on_every_connection_and_changes_nothing_of_the_next() -> None:
    """What is broken is refused on a connection that has just used one; and one goes on behind a parsed request."""

    async def play() -> None:
        async with listening(_echo) as wire:
            for _ in range(3):
                connection = await wire.open()
                for request in (_head() + b"{}", _head(3) + b"{ }", _head() + b"[]"):
                    await connection.send(request)
                    assert (await connection.answer())[0] == 200
                await connection.send(b"\x00\r\n\r\n")
                status, headers, body = await connection.answer()
                assert (status, headers["connection"]) == (400, "close")
                assert json.loads(body)["code"] == "malformed_request"
                await connection.close()

    asyncio.run(play())
