"""The real server as a process, on a free port of the loopback."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.support import calls

# What tests that are about something else have: everybody may, and as much as they like.
OPEN = {"AUTH_MODE": "none", "RATE_LIMIT": "1000000000/minute", "ADDRESS_RATE_LIMIT": "1000000000/minute"}
ROOT = Path(__file__).resolve().parents[2]
# What tests that are about new versions have: each is tried in a process of its own first, which takes seconds.
TRIED = {"MODEL_TRIALS": "auto"}
_READY_SECONDS = 60


@dataclass
class Server:
    """A running `python -m app serve`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx2.Client:
        """A client of its own connections."""
        return httpx2.Client(base_url=self.url, timeout=30, verify=False)

    def output(self) -> str:
        """All that it has printed."""
        return self.log.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of one event; fails on a line that is not a JSON object."""
        lines = [json.loads(line) for line in self.output().splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in lines if line["event"] == name]

    def wait_for_event(self, name: str, **having: str) -> dict[str, Any]:
        """The first line of that event with those values; a line may be written just after the answer has left."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for event in self.events(name):
                if having.items() <= event.items():
                    return event
            time.sleep(0.01)
        raise AssertionError(f"no {name} with {having}:\n{self.output()}")

    def wait_for_output(self, pattern: str) -> str:
        """The first group of the first line that matches."""
        deadline = time.monotonic() + _READY_SECONDS
        while not (match := re.search(pattern, self.output(), re.MULTILINE)):
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.02)
        return match[1]

    def wait_for(self, path: str, status: int) -> httpx2.Response:
        """The first answer of that status at that path."""
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.output()
            try:
                answer = calls.get(self.url + path, timeout=10)
            except httpx2.TransportError:
                answer = None
            if answer is not None and answer.status_code == status:
                return answer
            time.sleep(0.05)
        raise AssertionError(f"no {status} at {path}:\n{self.output()}")

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_server(
    models: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    wait: bool = True,
    arguments: Sequence[str] = (),
    module: Sequence[str] = (),
) -> Iterator[Server]:
    """Start a server, wait until it is ready and serves all it will, unless told otherwise; end it, whatever happens.

    Unless the environment says otherwise nobody has to say who they are, and versions are loaded without a trial. Its
    keys, its journal and, unless the environment names another, its database lie beside the log. `module` is run in the
    place of `app serve`.
    """
    port = int((environment or {}).get("PORT") or free_port())
    log.parent.mkdir(parents=True, exist_ok=True)
    places = {"JOURNAL_DIR": f"{log.parent}/journal", "DATABASE_URL": f"sqlite:///{log.parent}/presage.db"}
    places["JWT_KEYS_DIR"] = f"{log.parent}/keys"
    places["MODEL_TRIALS_DIR"] = f"{log.parent}/trials"
    places["LAME_DUCK_SECONDS"] = "0"
    own = {"MODELS_DIR": str(models), "PORT": str(port), "MODEL_TRIALS": "off", **OPEN, **places, **(environment or {})}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", *(module or ("app", "serve")), *arguments],
            cwd=ROOT,
            env=clean_environment(**own),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(process, port, log)
    try:
        if wait:
            server.wait_for("/health/ready", 200)
            server.wait_for_output("(models_loaded)")  # readiness waits for the required models alone
        yield server
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def clean_environment(**changes: str) -> Mapping[str, str]:
    """This process's environment without settings of the service that a developer may have exported."""
    kept = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH"}}
    return {**kept, "PYTHONUNBUFFERED": "1", **changes}
