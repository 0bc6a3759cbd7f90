"""HTTP by hand, for requests that no client library would send."""

import contextlib
import socket
import time
from dataclasses import dataclass
from typing import Self


@dataclass
class RawAnswer:
    """What came back before the connection closed or fell silent."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


def send_raw(port: int, request: bytes, *, timeout: float = 20) -> RawAnswer:
    """Send these bytes on a connection of their own and read one answer."""
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has seen enough; its answer counts
            connection.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += _more(connection, received)
        head, _, body = received.partition(b"\r\n\r\n")
        status, headers = _parse_head(head)
        length = int(headers.get("content-length", "0"))
        while len(body) < length:
            body += _more(connection, body)
    return RawAnswer(status, headers, body, time.perf_counter() - started)


class Caller:
    """One connection, kept open for as long as the server keeps it."""

    def __init__(self, port: int, *, address: str = "127.0.0.1", timeout: float = 20) -> None:
        """From `address`, of which the loopback has many."""
        self.connection = socket.create_connection(("127.0.0.1", port), timeout, (address, 0))
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def send(self, data: bytes) -> None:
        """These bytes; what a server that has seen enough does not take is lost."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.sendall(data)

    def read(self, *, head_only: bool = False) -> RawAnswer:
        """The next answer; `head_only` where it answers a HEAD."""
        started = time.perf_counter()
        while b"\r\n\r\n" not in self._unread:
            self._unread += _more(self.connection, self._unread)
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        status, headers = _parse_head(head)
        length = 0 if head_only else int(headers.get("content-length", "0"))
        while len(self._unread) < length:
            self._unread += _more(self.connection, self._unread)
        body, self._unread = self._unread[:length], self._unread[length:]
        return RawAnswer(status, headers, body, time.perf_counter() - started)

    def rest(self) -> bytes:
        """All that still comes before the server closes; a reset counts as an end."""
        with contextlib.suppress(ConnectionResetError):
            while data := self.connection.recv(65536):
                self._unread += data
        return self._unread


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A POST of JSON, as bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunked(*chunks: bytes) -> bytes:
    """A body in chunked transfer coding."""
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def _more(connection: socket.socket, received: bytes) -> bytes:
    data = connection.recv(65536)
    assert data, f"the connection ended after {received[:200]!r}"
    return data


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}
