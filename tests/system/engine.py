"""A container engine of the tests' own: a daemon on a socket in a folder of ours, ended with the tests.

Its images and layers are kept between runs, so that only the first run is slow.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BRIDGE = Path("/sys/class/net/docker0")


@dataclass(frozen=True)
class Engine:
    """A running daemon and a client that speaks to no other."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find this daemon, and nothing of what its user has configured."""
        kept = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "LANG", "TMPDIR"}}
        return {
            **kept,
            "DOCKER_HOST": f"unix://{self.folder}/docker.sock",
            "DOCKER_CONFIG": str(self.folder / "client"),
            "DOCKER_BUILDKIT": "1",
        }

    def run(self, *arguments: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """`docker …`; fails with what it said unless told not to check."""
        done = subprocess.run(
            ["docker", *arguments],
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"docker {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}"
        return done

    def output(self, *arguments: str | Path) -> str:
        """What `docker …` prints."""
        return self.run(*arguments).stdout.strip()

    def inspect(self, name: str) -> dict[str, Any]:
        """All that the engine knows about a container or an image."""
        found: dict[str, Any] = json.loads(self.output("inspect", name))[0]
        return found

    def health(self, container: str) -> str:
        """`starting`, `healthy` or `unhealthy`; fails when the container has ended."""
        state = self.inspect(container)["State"]
        assert state["Running"], self.logs(container)
        return str(state["Health"]["Status"])

    def logs(self, container: str) -> str:
        """What a container has printed, to either stream."""
        done = self.run("logs", container)
        return done.stdout + done.stderr

    def forget(self) -> None:
        """Remove what tests of an earlier run may have left; images stay, as far as they have a name."""
        if left := self.output("ps", "--all", "--quiet").split():
            self.run("rm", "--force", "--volumes", *left)
        for kind in ("network", "volume", "image"):
            self.run(kind, "prune", "--force")


def wait_until(condition: Callable[[], bool], *, seconds: float, what: Callable[[], str]) -> None:
    """Ask again and again until the condition holds; fails with `what()` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not after {seconds} s: {what()}"
        time.sleep(0.1)


@contextmanager
def running_engine() -> Iterator[Engine]:
    """Start a daemon (as root), and leave the machine's network as it was.

    One at a time: another run of the tests on this machine waits for its turn.
    """
    folder = Path(tempfile.gettempdir()) / "presage-system"
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.geteuid(), f"{folder} belongs to somebody else"
    (folder / "client").mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        bridge_is_ours = _end_leftover(folder) or not _BRIDGE.exists()
        try:
            with _daemon(folder) as engine:
                engine.forget()
                yield engine
        finally:
            if bridge_is_ours and _BRIDGE.exists():
                subprocess.run(["ip", "link", "delete", "docker0"], check=False)


@contextmanager
def _daemon(folder: Path) -> Iterator[Engine]:
    log = folder / "dockerd.log"
    # What a daemon that was killed has left of its run must not meet this one's.
    with tempfile.TemporaryDirectory(prefix="run-", dir=folder, ignore_cleanup_errors=True) as run:
        command = ["dockerd", f"--host=unix://{folder}/docker.sock", f"--pidfile={folder}/pid"]
        # Published ports go through the engine's own proxy; the machine's firewall and routing stay what they are.
        command += [f"--data-root={folder}/data", f"--exec-root={run}", "--iptables=false", "--ip-forward=false"]
        with log.open("wb") as output:
            daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        engine = Engine(folder)
        try:
            wait_until(lambda: _answers(engine, daemon, log), seconds=60, what=log.read_text)
            yield engine
        finally:
            _end(daemon)


def _answers(engine: Engine, daemon: subprocess.Popen[bytes], log: Path) -> bool:
    assert daemon.poll() is None, log.read_text()
    return engine.run("info", check=False).returncode == 0


def _end(daemon: subprocess.Popen[bytes]) -> None:
    """Politely, since it has containers to stop and file systems to let go."""
    daemon.terminate()
    try:
        daemon.wait(30)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _end_leftover(folder: Path) -> bool:
    """End the daemon that a killed test run has left; a process of somebody else with that number is left alone."""
    pidfile = folder / "pid"
    if not pidfile.exists():
        return False
    pid = int(pidfile.read_text())
    if _runs(pid, folder):
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not _runs(pid, folder), seconds=30, what=lambda: f"process {pid} runs")
    pidfile.unlink(missing_ok=True)
    return True


def _runs(pid: int, folder: Path) -> bool:
    """Whether that process is a daemon of this folder's; one that has ended has no command line, even if unreaped."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
