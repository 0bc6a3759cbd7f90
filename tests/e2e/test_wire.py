"""What comes over the wire before it is a request: bounds, deadlines, framing, and an answer to everyone refused."""

import contextlib
import socket
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.demo import MODULES
from tests.support.raw import Caller, RawAnswer, chunked, post, send_raw
from tests.support.server import Server, running_server
from tests.support.smuggling import AMBIGUOUS, HIDDEN, TEXT, get, post_text

HEADER_SECONDS = 0.5
BODY_SECONDS = 1.0
LINGER_SECONDS = 2.0
MOST_CONNECTIONS = 350
PROXY = "127.0.0.9"
ENVIRONMENT = {
    "AUTH_MODE": "none",
    "ADDRESS_RATE_LIMIT": "1000000000/minute",
    "MODEL_MODULES": MODULES,
    "LOG_FORMAT": "json",
    "HEADER_SECONDS": str(HEADER_SECONDS),
    "BODY_SECONDS": str(BODY_SECONDS),
    "MAX_CONNECTIONS_PER_ADDRESS": str(MOST_CONNECTIONS),
    "TRUSTED_PROXIES": PROXY,
}
_In = TypeVar("_In")
_Out = TypeVar("_Out")
POSITIVE = b'{"sentiment":"positive"}'
HOST = b"Host: localhost\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\n" + HOST + b"\r\n"
UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA")


@pytest.fixture(scope="module")
def wire(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is short of patience."""
    with running_server(models_dir, tmp_path_factory.mktemp("wire") / "log", ENVIRONMENT) as started:
        yield started


_CHUNKED = b"Transfer-Encoding: chunked"
_HOST = b"Host: localhost"


def test_what_can_be_read_in_two_ways_gets_one_refusal_and_no_more(wire: Server) -> None:
    """A 400, the end of the connection, and nothing that was hidden in it is ever answered."""

    def outcome(request: bytes) -> tuple[int, str, bool, bytes]:
        with Caller(wire.port) as caller:
            caller.send(request)
            answer = caller.read()
            return (
                answer.status,
                answer.headers.get("connection", ""),
                b"malformed_request" in answer.body,
                caller.rest(),
            )

    before = [_requests(wire, *of) for of in (("/health/live",), ("/predict",), ("/predict", "499"))]
    outcomes = dict(zip(AMBIGUOUS, _at_once(outcome, list(AMBIGUOUS.values())), strict=True))
    assert {name: found for name, found in outcomes.items() if found != (400, "close", True, b"")} == {}
    # Bodies that break have been passed on by then; the application is told that there will be no more of them.
    broken = sum(name.startswith("chunk ") for name in AMBIGUOUS)
    after = [before[0], before[1] + broken, before[2] + broken]
    _wait_until(lambda: _requests(wire, "/predict", "499") == after[2])
    assert [_requests(wire, *of) for of in (("/health/live",), ("/predict",), ("/predict", "499"))] == after
    assert "/hidden" not in wire.output()


@pytest.mark.parametrize("name", ["length and coding", "bare LF everywhere", "two hosts", "chunk b'g\\r\\n'"])
def test_a_request_is_refused_wherever_it_is_cut(wire: Server, name: str) -> None:
    """How the network cuts the bytes changes nothing."""
    for request, status in ((AMBIGUOUS[name], 400), (post("/predict", TEXT), 200), (_h2c(TEXT), 200)):
        with Caller(wire.port) as caller:
            caller.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for i in range(len(request)):
                caller.send(request[i : i + 1])
            assert caller.read().status == status


def test_a_refusal_is_a_problem_document_a_log_line_and_a_count(wire: Server) -> None:
    """With an id that is the same in all of them, and without a word of what was sent."""
    before = _requests(wire, "none", "400")
    answer = send_raw(wire.port, get(_HOST, b"canary: \x00"))
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "date" in answer.headers
    assert "server" not in answer.headers
    identifier = answer.headers["x-request-id"]
    assert b'"request_id":"%s"' % identifier.encode() in answer.body
    line = wire.wait_for_event("request_refused", request_id=identifier)
    assert (line["status"], line["code"], line["level"]) == (400, "malformed_request", "info")
    assert "canary" not in wire.output()
    assert _requests(wire, "none", "400") == before + 1


_BOUNDS = {
    "URL": (lambda n: get(_HOST, target=b"/" + b"a" * (n - 1)), 8192, 404, 414, "url_too_long"),
    "headers": (lambda n: get(_HOST, *[b"X: y"] * (n - 1)), 100, 200, 431, "headers_too_large"),
    "cookie": (lambda n: get(_HOST, b"Cookie: " + b"\\" * n), 32768 - 27, 200, 431, "headers_too_large"),
}


@pytest.mark.parametrize(("request_of", "most", "passes", "status", "code"), _BOUNDS.values(), ids=_BOUNDS)
def test_a_head_may_reach_its_bounds_and_not_pass_them(
    wire: Server, request_of: Callable[[int], bytes], most: int, passes: int, status: int, code: str
) -> None:
    """The last that is taken, and the first that is not."""
    assert send_raw(wire.port, request_of(most)).status == passes
    answer = send_raw(wire.port, request_of(most + 1))
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert f'"code":"{code}"'.encode() in answer.body


def _endless(piece: bytes, size: int) -> bytes:
    return piece * (size // len(piece))


ATTACKS = {
    "a URL of 1 MB": (b"GET /" + _endless(b"a", 1 << 20), 414),
    "100,000 headers": (b"GET / HTTP/1.1\r\n" + b"X-Name: value\r\n" * 100_000, 431),
    "40 MB of headers": (b"GET / HTTP/1.1\r\n" + _endless(b"X: " + b"a" * 1000 + b"\r\n", 40 << 20), 431),
    "a header of 4 MB": (b"GET / HTTP/1.1\r\nX: " + _endless(b"a", 4 << 20), 431),
    "a header's name of 4 MB": (b"GET / HTTP/1.1\r\n" + _endless(b"a", 4 << 20), 431),
    "a million tiny chunks": (post_text(_CHUNKED, body=b"1\r\n \r\n" * 1_000_000 + b"0\r\n\r\n"), 400),
    "a chunk's extension of 4 MB": (post_text(_CHUNKED, body=b"1;" + _endless(b"a", 4 << 20)), 400),
    "a trailer of 4 MB": (post_text(_CHUNKED, body=b"0\r\nX: " + _endless(b"a", 4 << 20)), 400),
    "10,000 requests at once": (LIVE * 10_000, 200),
}


def test_large_attacks_are_answered_and_leave_nothing_behind(wire: Server) -> None:
    """Each caller reads why, though much of what it sends is never looked at; and the memory comes to rest.

    That is, five rounds of attacks take less than 1 MiB; the first ones warm up the allocator.
    """
    resident: list[int] = []
    while len(resident) < 6 or resident[-1] - resident[-6] >= 1 << 20:
        assert len(resident) < 40, resident
        for name, (request, status) in ATTACKS.items():
            assert send_raw(wire.port, request).status == status, name
        resident.append(_resident_bytes(wire))


@pytest.mark.parametrize("name", ["a URL of 1 MB", "40 MB of headers", "a chunk's extension of 4 MB"])
def test_who_sends_everything_before_reading_is_not_cut_off(wire: Server, name: str) -> None:
    """A connection that is reset on unread bytes may take the answer with it; so they are thrown away for a while."""
    request, status = ATTACKS[name]
    with Caller(wire.port) as caller:
        caller.connection.sendall(request)
        assert caller.read().status == status


def test_a_hostile_cookie_does_not_hold_the_loop(wire: Server) -> None:
    """Others are answered as ever while cookies come that some Pythons take seconds to parse."""
    cookies = [get(_HOST, b'Cookie: a="' + b"\\" * size + b'"') for size in (30_000, 64_000)]
    ended = threading.Event()

    def attack() -> None:
        while not ended.is_set():
            assert [send_raw(wire.port, cookie).status for cookie in cookies] == [200, 431]

    slowest = 0.0
    with ThreadPoolExecutor(1) as attackers:
        attacker = attackers.submit(attack)
        for _ in range(200):
            slowest = max(slowest, send_raw(wire.port, LIVE).seconds)
        ended.set()
        attacker.result()
    assert slowest < 0.5


def _h2c(body: bytes, *headers: str) -> bytes:
    return post("/predict", body, *UPGRADE, *headers)


@pytest.mark.parametrize(
    "request_bytes",
    [
        _h2c(TEXT),
        _h2c(chunked(TEXT[:5], TEXT[5:]), "Transfer-Encoding: chunked"),
        post("/predict", TEXT, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
        post("/predict", TEXT, "Connection: keep-alive, Upgrade", "Upgrade: TLS/1.0", "upgrade: h2c"),
    ],
    ids=["length", "chunks", "websocket", "two upgrades"],
)
def test_who_asks_for_another_protocol_is_served_in_this_one(wire: Server, request_bytes: bytes) -> None:
    """With its body, whatever way it comes; and the connection goes on, alone and in a queue."""
    with Caller(wire.port) as caller:
        for queued in (1, 1, 5):
            caller.send(request_bytes * queued + LIVE)
            answers = [caller.read() for _ in range(queued + 1)]
            assert [answer.body for answer in answers] == [POSITIVE] * queued + [b'{"status":"live"}']
            assert [answer.status for answer in answers] == [200] * (queued + 1)


def test_who_asks_for_another_protocol_may_wait_for_permission_to_send(wire: Server) -> None:
    """`Expect: 100-continue` is not lost with the request to upgrade."""
    head = _h2c(b"", f"Content-Length: {len(TEXT)}", "Expect: 100-continue")
    with Caller(wire.port) as caller:
        caller.send(head)
        assert caller.read().status == 100
        caller.send(TEXT)
        assert caller.read().body == POSITIVE


def test_requests_in_a_queue_are_answered_in_their_order(wire: Server) -> None:
    """And one that cannot be read is refused in its turn, after all that came before it."""
    slow = post("/v2/predict/slow", b'{"inputs": {"x": 0.3}}')
    with Caller(wire.port) as caller:
        caller.send(slow + LIVE + post("/predict", TEXT) + b"GET / HTTP/1.1\r\n\r\n" + HIDDEN)
        answers = [caller.read() for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 200, 400]
        assert [answer.body for answer in answers[1:3]] == [b'{"status":"live"}', POSITIVE]
        assert caller.rest() == b""


def test_a_body_that_breaks_while_it_waits_in_the_queue_is_refused_in_its_turn(wire: Server) -> None:
    """The request before it gets its answer first."""
    slow = post("/v2/predict/slow", b'{"inputs": {"x": 0.3}}')
    with Caller(wire.port) as caller:
        caller.send(slow + post_text(_CHUNKED, body=b"5\r\nabc"))
        caller.send(b"deXXX")
        assert [caller.read().status for _ in range(2)] == [200, 400]
        assert caller.rest() == b""


def test_a_queue_has_an_end(wire: Server) -> None:
    """What waits on one connection is memory of ours."""
    with Caller(wire.port) as caller:
        caller.send(LIVE * 500)
        statuses = []
        while (status := caller.read().status) == 200:
            statuses.append(status)
        assert (len(statuses), status) == (65, 400)


def test_head_and_the_old_version_are_served(wire: Server) -> None:
    """HEAD without a body, also when it is refused; HTTP/1.0 without Host, and closed behind the answer."""
    with Caller(wire.port) as caller:
        caller.send(LIVE.replace(b"GET", b"HEAD") + LIVE)
        assert caller.read(head_only=True).status == 200
        assert caller.read().body == b'{"status":"live"}'
        caller.send(get().replace(b"GET", b"HEAD"))
        assert caller.read(head_only=True).status == 400
        assert caller.rest() == b""
    with Caller(wire.port) as caller:
        caller.send(get(version=b"1.0"))
        assert caller.read().status == 200
        assert caller.rest() == b""


def test_a_path_with_two_slashes_is_a_path(wire: Server) -> None:
    """No part of it is ever read as a host."""
    assert send_raw(wire.port, get(_HOST, target=b"//evil/health/live")).status == 404
    assert send_raw(wire.port, b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n").status == 404


def test_a_trailer_is_no_header(wire: Server) -> None:
    """What comes behind the body changes nothing of the request, nor of the next one."""
    body = b"%x\r\n%s\r\n0\r\nX-Request-ID: trailer\r\nHost: evil\r\n\r\n" % (len(TEXT), TEXT)
    with Caller(wire.port) as caller:
        caller.send(post_text(_CHUNKED, body=body) + LIVE)
        answers = [caller.read() for _ in range(2)]
        assert [answer.status for answer in answers] == [200, 200]
        assert "trailer" not in [answer.headers["x-request-id"] for answer in answers]
        caller.send(post_text(_CHUNKED, b"Host: evil", body=body))
        assert caller.read().status == 400


def test_who_is_silent_is_let_go_without_a_word(wire: Server) -> None:
    """After the time that a head may take; blank lines count for nothing."""

    def silence(sent: bytes) -> tuple[bytes, float]:
        with Caller(wire.port) as caller:
            caller.send(sent)
            if sent == LIVE:
                assert caller.read().status == 200
                caller.send(b"\r\n")
            started = time.monotonic()
            return caller.rest(), time.monotonic() - started

    for rest, seconds in _at_once(silence, [b"", b"\r\n", LIVE]):
        assert rest == b""
        assert HEADER_SECONDS * 0.9 < seconds < HEADER_SECONDS * 10


PARTS = {
    "first letter": (b"G", HEADER_SECONDS),
    "head": (LIVE[:-1], HEADER_SECONDS),
    "second head": (LIVE + LIVE[:-1], HEADER_SECONDS),
    "body": (post("/predict", TEXT)[:-1], BODY_SECONDS),
    "chunk": (post_text(_CHUNKED, body=b"5\r\n    "), BODY_SECONDS),
    "cold body": (post("/v2/feedback", TEXT)[:-1], BODY_SECONDS),
    "body after an upgrade": (_h2c(TEXT)[:-1], BODY_SECONDS),
}


def test_a_request_that_does_not_come_in_time_is_told_so(wire: Server) -> None:
    """408 when some of it has come, and then the end."""

    def wait(name: str) -> tuple[RawAnswer, float, bytes]:
        with Caller(wire.port) as caller:
            started = time.monotonic()
            caller.send(PARTS[name][0])
            if name == "second head":
                assert caller.read().status == 200
            return caller.read(), time.monotonic() - started, caller.rest()

    for name, (answer, seconds, rest) in zip(PARTS, _at_once(wait, list(PARTS)), strict=True):
        assert (answer.status, answer.headers["connection"], rest) == (408, "close", b""), name
        assert b'"code":"request_timeout"' in answer.body
        assert PARTS[name][1] * 0.9 < seconds < PARTS[name][1] * 10, name
    assert wire.events("request_failed") == []


def test_each_of_many_requests_in_one_stream_has_time_of_its_own(wire: Server) -> None:
    """A queue of which every piece ends within a head goes on for longer than one head may take."""
    with Caller(wire.port) as caller:
        caller.send(LIVE[:-1])
        started = time.monotonic()
        while time.monotonic() - started < HEADER_SECONDS * 3:
            caller.send(LIVE[-1:] + LIVE[:-1])
            assert caller.read().status == 200
            time.sleep(HEADER_SECONDS / 20)
        caller.send(LIVE[-1:])
        assert caller.read().status == 200


def test_who_was_answered_early_and_then_idles_is_let_go_without_a_word(wire: Server) -> None:
    """The end of a body that nobody wanted is no beginning of a request."""
    with Caller(wire.port) as caller:
        refused = post("/predict", TEXT).replace(b"application/json", b"text/plain")
        caller.send(refused[:-1])
        assert caller.read().status == 415
        caller.send(refused[-1:])
        assert caller.rest() == b""


def test_time_in_which_the_server_does_not_read_is_not_the_callers(wire: Server) -> None:
    """A body that waits behind a slow request may take longer than bodies may."""
    slow = post("/v2/predict/slow", b'{"inputs": {"x": %.1f}}' % (BODY_SECONDS * 2))
    with Caller(wire.port) as caller:
        caller.send(slow)
        caller.send(post("/predict", TEXT + b" " * 900_000))
        assert [caller.read().status for _ in range(2)] == [200, 200]
        caller.send(LIVE)
        assert caller.read().status == 200


SLOW = {
    "silent": (b"", b"", b""),
    "heads": (b"GET / HTTP/1.1\r\nX: ", b"a", b"HTTP/1.1 408 "),
    "bodies": (post("/predict", b"", "Content-Length: 1000"), b" ", b"HTTP/1.1 408 "),
}


@pytest.mark.parametrize(("first", "then", "answered"), SLOW.values(), ids=SLOW)
def test_slow_callers_are_ended_while_others_are_served(
    wire: Server, first: bytes, then: bytes, answered: bytes
) -> None:
    """300 of them at once hold nobody up: half of the other requests take at most three times as long as before."""
    before = _median_seconds(wire)
    callers = [Caller(wire.port, address="127.0.0.3") for _ in range(300)]
    started = time.monotonic()
    for caller in callers:
        caller.send(first)
    during = []
    longest = HEADER_SECONDS + BODY_SECONDS + LINGER_SECONDS
    left, heard = callers, defaultdict[Caller, bytes](bytes)
    while left:
        during.append(_median_seconds(wire, 20))
        assert time.monotonic() - started < 10 * longest
        for caller in left:
            caller.send(then)
        left = [caller for caller in left if not _ended(caller, answered, heard)]
    for caller in callers:
        caller.connection.close()
    assert statistics.median(during) < 3 * before


def _ended(caller: Caller, answered: bytes, heard: dict[Caller, bytes]) -> bool:
    """Whether the server has closed; fails where it did so in another way than expected. Answers come in pieces."""
    with contextlib.suppress(BlockingIOError):
        caller.connection.settimeout(0)
        try:
            while data := caller.connection.recv(65536):
                heard[caller] += data
                assert answered
                assert heard[caller].startswith(answered[: len(heard[caller])]), heard[caller]
        except ConnectionResetError:
            pass
        return True
    caller.connection.settimeout(20)
    return False


def test_an_address_has_so_many_connections_and_no_more(wire: Server) -> None:
    """One too many is told so; other addresses and proxies are not concerned; who leaves makes room."""
    with contextlib.ExitStack() as stack:

        def connect(address: str, number: int) -> list[Caller]:
            return [stack.enter_context(Caller(wire.port, address=address)) for _ in range(number)]

        callers = connect("127.0.0.4", MOST_CONNECTIONS)
        (refused,) = connect("127.0.0.4", 1)
        answer = refused.read()
        assert (answer.status, answer.headers["connection"]) == (429, "close")
        assert b'"code":"too_many_connections"' in answer.body
        assert int(answer.headers["retry-after"]) >= 1
        assert send_raw(wire.port, LIVE).status == 200
        for caller in (*callers[:2], refused):
            caller.connection.close()
        _wait_until(lambda: _live("127.0.0.4", wire) == 200)
    with contextlib.ExitStack() as stack:
        connect(PROXY, MOST_CONNECTIONS + 1)
        assert _live(PROXY, wire) == 200


def test_a_server_with_slow_and_refused_callers_stops_at_once(models_dir: Path, tmp_path: Path) -> None:
    """Who has not asked anything is waited for only a moment, and so is what is thrown away of a refused request."""
    with running_server(models_dir, tmp_path / "log", {**ENVIRONMENT, "HEADER_SECONDS": "100"}) as server:
        silent, half, refused = (Caller(server.port) for _ in range(3))
        half.send(LIVE[:-1])
        refused.send(AMBIGUOUS["two hosts"])
        assert refused.read().status == 400
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < LINGER_SECONDS * 3
        assert half.read().status == 408
        for caller in (silent, half, refused):
            assert caller.rest() == b""
            caller.connection.close()
        assert server.events("request_failed") == []
        assert '"level": "error"' not in server.output()


def _at_once(ask: Callable[[_In], _Out], of: list[_In]) -> list[_Out]:
    """Each on a thread of its own: what takes seconds by design shall not take them one after another."""
    with ThreadPoolExecutor(len(of)) as callers:
        return list(callers.map(ask, of))


def _live(address: str, server: Server) -> int:
    with Caller(server.port, address=address) as caller:
        caller.send(LIVE)
        answer: RawAnswer = caller.read()
        return answer.status


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _median_seconds(server: Server, number: int = 100) -> float:
    return statistics.median(send_raw(server.port, LIVE).seconds for _ in range(number))


def _requests(server: Server, handler: str, status: str = "") -> int:
    """How many the server has counted for a handler."""
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    wanted = [line for line in lines if line.startswith(f'http_requests_total{{handler="{handler}"')]
    return sum(int(float(line.split()[-1])) for line in wanted if not status or f'status="{status}"' in line)


def _resident_bytes(server: Server) -> int:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096
