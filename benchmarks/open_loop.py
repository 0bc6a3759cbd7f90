"""Load that does not wait for answers: requests leave when their time has come, however slow the server is.

    python -m benchmarks.open_loop < order.json > result.json

Arrivals are a Poisson process with a fixed seed, so every server gets the same ones for a rate. A request's latency
counts from the moment at which it was due, also when it had to wait for a free connection: a server that stalls is
charged for all who came meanwhile. (wrk and h2load send no different bodies at a fixed rate, so this is our own.) One
thread polls without sleeping: a timer of an event loop would send a millisecond's requests in one burst.
"""

import gc
import json
import random
import re
import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CONNECT_SECONDS = 2.0
_READ_BYTES = 65_536


@dataclass(frozen=True)
class Order:
    """What is sent: whole HTTP requests in turn, `rate` a second for `seconds`; then `drain` seconds for answers."""

    port: int
    requests: Sequence[bytes]
    rate: float
    seconds: float
    connections: int
    drain: float = 10.0
    seed: int = 0


@dataclass(slots=True)
class Connection:
    """One connection, and when the request that is on it was due."""

    socket: socket.socket
    due: float = -1.0
    received: bytes = b""


@dataclass
class Tally:
    """What came back. Latencies are in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    in_time: int = 0
    sent: int = 0
    unsent: int = 0
    broken: int = 0
    late: list[float] = field(default_factory=list)


class Generator:
    """The loop."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.tally = Tally()
        self.poller = select.epoll()
        self.open: dict[int, Connection] = {}
        self.idle: deque[Connection] = deque()
        self.waiting: deque[float] = deque()
        for _ in range(order.connections):
            self._connect()

    def run(self) -> Tally:
        """Send all, and wait for what is outstanding, within the order's bounds."""
        try:
            self._loop()
        finally:
            self.poller.close()
            for connection in self.open.values():
                connection.socket.close()
        return self.tally

    def _loop(self) -> None:
        order, waiting, idle = self.order, self.waiting, self.idle
        arrivals = random.Random(order.seed)  # noqa: S311 -- arrivals, not secrets
        self.started = time.perf_counter()
        due = arrivals.expovariate(order.rate)
        while True:
            now = time.perf_counter() - self.started
            while due <= now and due < order.seconds:
                waiting.append(due)
                due += arrivals.expovariate(order.rate)
            while waiting and idle:
                self._send(idle.popleft(), waiting.popleft())
            outstanding = len(waiting) + len(self.open) - len(idle)
            if (not outstanding and due >= order.seconds) or now > order.seconds + order.drain:
                self.tally.unsent = len(waiting)
                return
            for number, _ in self.poller.poll(0):
                self._receive(self.open[number])

    def _connect(self) -> None:
        made = socket.create_connection(("127.0.0.1", self.order.port), _CONNECT_SECONDS)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.settimeout(0)
        connection = Connection(made)
        self.open[made.fileno()] = connection
        self.poller.register(made, select.EPOLLIN)
        self.idle.append(connection)

    def _send(self, connection: Connection, due: float) -> None:
        tally, requests = self.tally, self.order.requests
        content = requests[tally.sent % len(requests)]
        connection.due = due
        tally.sent += 1
        try:
            whole = connection.socket.send(content) == len(content)  # kilobytes fit into a socket's buffer
        except OSError:
            whole = False
        if not whole:
            self._replace(connection)
            return
        tally.late.append(time.perf_counter() - self.started - due)

    def _receive(self, connection: Connection) -> None:
        try:
            content = connection.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            content = b""
        if not content:
            self._replace(connection)
            return
        received = connection.received = connection.received + content
        head, found, body = received.partition(b"\r\n\r\n")
        if not found:
            return
        length = _LENGTH.search(head)
        if length is None:
            raise ValueError(f"an answer without its length: {head!r}")
        if len(body) >= int(length[1]):
            self._count(connection, int(received[9:12]))

    def _count(self, connection: Connection, status: int) -> None:
        now = time.perf_counter() - self.started
        tally = self.tally
        tally.statuses[status] += 1
        (tally.accepted if status == 200 else tally.refused).append(now - connection.due)
        tally.in_time += status == 200 and now <= self.order.seconds
        connection.due, connection.received = -1.0, b""
        self.idle.append(connection)

    def _replace(self, connection: Connection) -> None:
        """The server has closed it: with a request on it that request is lost, and counted as broken."""
        if connection.due >= 0:
            self.tally.broken += 1
        else:
            self.idle.remove(connection)
        del self.open[connection.socket.fileno()]
        self.poller.unregister(connection.socket)
        connection.socket.close()
        self._connect()


def result(order: Order, tally: Tally) -> dict[str, Any]:
    """Figures of a run; times in milliseconds. `late` is how late requests left, for want of a connection or of us."""
    answered = sum(tally.statuses.values())
    return {
        "offered": order.rate,
        "sent": tally.sent,
        "goodput": tally.in_time / order.seconds,
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "unanswered": tally.unsent + tally.sent - answered - tally.broken,
        "broken": tally.broken,
        **_quantiles("p", tally.accepted),
        **_quantiles("refused_p", tally.refused),
        **_quantiles("late_p", tally.late),
    }


def _quantiles(name: str, seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"{name}{q}": ordered[min(len(ordered) - 1, len(ordered) * q // 100)] * 1e3 for q in (50, 99) if ordered}


def http_request(port: int, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """A POST as it goes over the wire."""
    named = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def main() -> None:
    """Read the order, run it, print the result."""
    given = json.load(sys.stdin)
    order = Order(**{**given, "requests": [text.encode() for text in given["requests"]]})
    gc.disable()
    json.dump(result(order, Generator(order).run()), sys.stdout)


if __name__ == "__main__":
    main()
