"""A service from outside: requests as bytes, what an answer must have, and what a process may take meanwhile."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.raw import RawAnswer, post, send_raw
from tests.support.tokens import token

TEXT = b'{"text": "I love this"}'
# Ten times what the slowest takes on a slow machine, or more: only what is held up gets there.
CEILING_SECONDS = 10.0
_FIRST_BYTES = 16 << 20
_FLAT_BYTES = 4 << 20


@dataclass(frozen=True)
class Target:
    """A service that takes tokens of `tests.support.tokens`; it has an RSA key, too, with the id `rsa`."""

    port: int
    pid: int
    public_key: bytes


def bearer(**changes: Any) -> str:
    """The header with a good token but for the changes to its claims."""
    return f"Authorization: Bearer {token(**changes).decode()}"


def request(method: str, path: str, *headers: str, host: str = "localhost") -> bytes:
    """A request without a body, as bytes."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode("latin-1")


def get(target: Target, path: str, *headers: str) -> RawAnswer:
    """One GET on a connection of its own."""
    return send_raw(target.port, request("GET", path, *headers))


def predict(target: Target, given: bytes, body: bytes = TEXT) -> RawAnswer:
    """A text's sentiment, asked for with that token."""
    return send_raw(target.port, post("/predict", body, f"Authorization: Bearer {given.decode('latin-1')}"))


def without_request_id(answer: RawAnswer) -> bytes:
    """The body, but for what differs in every answer."""
    return re.sub(rb'"request_id":\s*"[^"]*"', b"", answer.body)


def strict_json(answer: RawAnswer) -> Any:
    """The body's value; AssertionError for what only Python takes for JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    try:
        return json.loads(answer.body, parse_constant=refuse)
    except ValueError:
        raise AssertionError(f"{answer.status} is no JSON: {answer.body[:200]!r}") from None


def assert_safe(answer: RawAnswer, problem_type: str = "application/problem+json") -> None:
    """Nothing to sniff, frame, run, keep or learn from, and an error that can be found again."""
    policy = answer.headers.get("content-security-policy", "")
    assert answer.headers.get("x-content-type-options") == "nosniff", f"{answer.status} may be sniffed"
    assert policy.startswith("default-src 'none'"), f"{answer.status} has the policy {policy!r}"
    assert answer.headers.get("cache-control") == "no-store", f"{answer.status} may be kept"
    assert answer.headers.get("referrer-policy") == "no-referrer", f"{answer.status} tells where one was"
    assert "server" not in answer.headers, f"{answer.status} says what made it"
    assert answer.headers.get("x-request-id"), f"{answer.status} has no id"
    if answer.status >= 400:
        assert answer.headers["content-type"] == problem_type, answer.headers["content-type"]
        problem = strict_json(answer)
        assert (problem["status"], problem["request_id"]) == (answer.status, answer.headers["x-request-id"])


def with_flat_memory(target: Target, attack: Callable[[], None]) -> None:
    """Run an attack once, which may be the first of its kind, and then again, which takes next to no memory more."""
    with flat_memory(target.pid, _FIRST_BYTES):
        attack()
    with flat_memory(target.pid, _FLAT_BYTES):
        for _ in range(2):
            attack()


@contextmanager
def flat_memory(pid: int, most: int) -> Iterator[None]:
    """At no moment meanwhile does the process take `most` bytes more than it had; AssertionError if it does."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    before = _peak_bytes(pid)
    yield
    grown = _peak_bytes(pid) - before
    assert grown < most, f"the process grew by {grown >> 20} MiB"


def flood(port: int, head: bytes, part: bytes, times: int) -> bytes:
    """Send a part again and again, for as long as anybody takes it; what came back until the connection ended."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=CEILING_SECONDS) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(head)
            for _ in range(times):
                connection.sendall(part)
        try:
            while data := connection.recv(65_536):
                received += data
        except ConnectionResetError:
            pass
        except TimeoutError:
            raise AssertionError(f"the connection stays open after {received[:100]!r}") from None
    return received


def _peak_bytes(pid: int) -> int:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) << 10
