"""The load that does not wait: what it says of a server must be true of it."""

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.open_loop import Generator, Order, http_request, result

STALL_SECONDS = 0.5


class Stalls(http.server.BaseHTTPRequestHandler):
    """Answers at once, but for one stall of all; refuses where the path says so."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet; two would wait for one another
    lock = threading.Lock()
    stalls_at = 0
    answered = 0
    bodies: list[bytes]

    def do_POST(self) -> None:
        """Answer as the path asks."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            cls = type(self)
            cls.bodies.append(body)
            cls.answered += 1
            if cls.answered == cls.stalls_at:
                time.sleep(STALL_SECONDS)
        self.send_response(503 if self.path == "/refuse" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
        if self.path == "/close":
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def served(stalls_at: int = 0) -> Iterator[tuple[int, type[Stalls]]]:
    """The port of a server in this process, and its handler."""
    handler = type("Handler", (Stalls,), {"bodies": [], "answered": 0, "stalls_at": stalls_at})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1], handler
        finally:
            server.shutdown()
            thread.join()


def run(port: int, path: str = "/", **order: Any) -> dict[str, Any]:
    """The figures of a second of a hundred requests a second."""
    requests = [http_request(port, path, body, {}) for body in (b'{"text": "one"}', b'{"text": "zw\xc3\xb6lf"}')]
    asked = Order(**{"port": port, "requests": requests, "rate": 100, "seconds": 1, "connections": 2, **order})
    return result(asked, Generator(asked).run())


def test_every_request_is_sent_in_turn_and_answered() -> None:
    """Bodies take turns, the rate is about what was asked, and every answer is counted with its status."""
    with served() as (port, handler):
        found = run(port)
    assert found["statuses"] == {"200": found["sent"]}
    assert 60 < found["sent"] < 140
    assert found["p50"] < 10
    assert found["unanswered"] == found["broken"] == 0
    assert set(handler.bodies) == {b'{"text": "one"}', b'{"text": "zw\xc3\xb6lf"}'}


def test_a_stall_is_charged_for_all_who_came_meanwhile() -> None:
    """Half a second without answers is in the latency of every request that was due in it, not of two alone."""
    with served(stalls_at=20) as (port, _):
        found = run(port)
    assert found["p99"] > STALL_SECONDS * 1e3 * 0.8
    assert found["p50"] > 10  # nearly half of the requests were due while nothing moved
    assert found["late_p99"] > STALL_SECONDS * 1e3 * 0.8  # and had no connection to leave on


def test_refusals_are_no_goodput() -> None:
    """A 503 is counted by its status, and has no part in the goodput or the latency of the accepted."""
    with served() as (port, _):
        found = run(port, "/refuse")
    assert found["goodput"] == 0
    assert "p50" not in found
    assert found["statuses"] == {"503": found["sent"]}
    assert found["refused_p50"] > 0


def test_a_closed_connection_is_replaced() -> None:
    """A server that closes after each answer gets all requests all the same."""
    with served() as (port, _):
        found = run(port, "/close")
    assert found["statuses"].get("200", 0) + found["broken"] == found["sent"]
    assert found["statuses"]["200"] > found["sent"] / 2


def test_what_is_never_answered_is_counted_within_bounded_time() -> None:
    """A server that hangs ends the run at its bound, with every request that was due in the figures."""
    with served(stalls_at=1) as (port, _):
        started = time.monotonic()
        found = run(port, seconds=0.2, drain=0.1, connections=1)
        assert time.monotonic() - started < STALL_SECONDS
    assert found["statuses"] == {}
    assert found["unanswered"] >= 10
