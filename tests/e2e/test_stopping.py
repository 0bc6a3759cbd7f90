"""A service that is asked to stop finishes what has begun, refuses what comes too late, and loses nothing."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.demo import MODULES
from tests.support.ledger import answers, load
from tests.support.raw import Caller, post
from tests.support.server import ROOT, Server, clean_environment, running_server

ENVIRONMENT = {"MODEL_MODULES": MODULES, "LOG_FORMAT": "json"}
FLOWER = b'{"sepal length (cm)": 5, "sepal width (cm)": 3, "petal length (cm)": 1, "petal width (cm)": 1}'
PREDICT = post("/v2/predict/iris", b'{"inputs": %s}' % FLOWER)
READY = b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
# A connection that says nothing for so long has no more to say.
SPEAK_SECONDS = 1.0


@pytest.fixture(params=["1", "2"], ids=["alone", "two workers"])
def server(request: pytest.FixtureRequest, models_dir: Path, tmp_path: Path) -> Iterator[Server]:
    """In one process, and in several."""
    environment = {**ENVIRONMENT, "WORKERS": request.param}
    with running_server(models_dir, tmp_path / "log", environment, arguments=["--migrate"]) as running:
        yield running


def stopping(server: Server) -> None:
    """SIGTERM, and wait until nobody listens any more."""
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", server.port), 5).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.01)
    raise AssertionError("it still listens")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stop_under_load_fails_no_request(models_dir: Path, tmp_path: Path, workers: str) -> None:
    """Callers that keep their connections; and what was answered is in the database, once."""
    environment = {**ENVIRONMENT, "DEFAULT_MODEL": "double", "LAME_DUCK_SECONDS": "0.5", "WORKERS": workers}
    with running_server(models_dir, tmp_path / "log", environment, arguments=["--migrate"]) as server:
        with load(server, callers=8) as ledger:
            answers(ledger, 500)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
            while not ledger.statuses["refused"]:
                time.sleep(0.01)
        assert set(ledger.statuses) == {200, "refused"}
        ledger.assert_matches(f"sqlite:///{tmp_path}/presage.db")


def test_a_lame_duck_answers_and_says_that_it_will_be_gone(models_dir: Path, tmp_path: Path) -> None:
    """By every way to an answer: hot and cold, refused and good, by a head that is known and by one that is not."""
    with running_server(models_dir, tmp_path / "log", {**ENVIRONMENT, "LAME_DUCK_SECONDS": "30"}) as server:
        callers = [Caller(server.port) for _ in range(6)]
        requests = [
            PREDICT,
            PREDICT,
            LIVE,
            READY,
            post("/v2/predict/nobody", b"{}"),
            b"GET /v2/catalog HTTP/1.1\r\nHost: a\r\n\r\n",
        ]
        for caller in callers:
            for _ in range(2):
                caller.send(PREDICT)
                assert "connection" not in caller.read().headers
        server.process.send_signal(signal.SIGTERM)
        not_ready = server.wait_for("/health/ready", 503)
        assert not_ready.json()["detail"] == "the service is stopping"
        for caller, request, status in zip(callers, requests, [200, 200, 200, 503, 404, 200], strict=True):
            caller.send(request)
            answer = caller.read()
            assert (answer.status, answer.headers.get("connection")) == (status, "close"), request
            assert caller.rest() == b""
            caller.connection.close()
        with Caller(server.port) as late:
            late.send(PREDICT)
            assert late.read().status == 200
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)  # who asks twice does not want to wait
        assert server.process.wait(10) == 0


def test_who_is_connected_and_has_said_nothing_may_still_speak(server: Server) -> None:
    """Its request may have been on its way; uvicorn's own server would have closed the connection."""
    with Caller(server.port) as silent, Caller(server.port) as slow:
        slow.send(PREDICT[:20])
        stopping(server)
        silent.send(PREDICT)
        slow.send(PREDICT[20:])
        for caller in (silent, slow):
            answer = caller.read()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert server.process.wait(30) == 0


def test_who_waits_in_the_queue_of_the_kernel_is_answered(server: Server) -> None:
    """Connections that were completed while the server had no time for them."""
    processes = _family(server)
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Caller(server.port)) for _ in range(50)]
        for caller in callers:
            caller.send(PREDICT)
        for pid in processes:
            os.kill(pid, signal.SIGTERM)  # to all at once, as some service managers do
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
        assert {caller.read().status for caller in callers} == {200}
    assert server.process.wait(30) == 0


def test_who_keeps_a_connection_and_says_nothing_does_not_keep_the_server(server: Server) -> None:
    """Nor does one that never said anything."""
    with Caller(server.port) as keeping, Caller(server.port):
        keeping.send(PREDICT)
        assert keeping.read().status == 200
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 10 * SPEAK_SECONDS


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_upload_that_stalls_keeps_the_server_only_for_its_own_time(
    models_dir: Path, tmp_path: Path, workers: str
) -> None:
    """It ends as it would at any time, with 408."""
    environment = {**ENVIRONMENT, "BODY_SECONDS": "2", "WORKERS": workers}
    with running_server(models_dir, tmp_path / "log", environment) as server:
        with Caller(server.port) as caller:
            caller.send(post("/v2/predict/iris", b"", "Content-Length: 100") + b'{"inp')
            stopping(server)
            assert caller.read().status == 408
        assert server.process.wait(20) == 0


def test_a_second_signal_ends_it_at_once(server: Server) -> None:
    """With what is in the journal there for the next one."""
    with Caller(server.port) as caller:
        caller.send(post("/v2/predict/slow", b'{"inputs": {"x": 5}}'))
        stopping(server)
        started = time.monotonic()
        while server.process.poll() is None:  # what comes within half a second may be an echo
            assert time.monotonic() - started < 3
            server.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(0.7)
        assert server.process.returncode == 0


def test_a_ctrl_c_has_no_lame_duck(models_dir: Path, tmp_path: Path) -> None:
    """Somebody waits at the terminal."""
    with running_server(models_dir, tmp_path / "log", {**ENVIRONMENT, "LAME_DUCK_SECONDS": "60"}) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0


def _family(server: Server) -> list[int]:
    found = [server.process.pid]
    for pid in found:
        found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return found


_HANGS = """
import asyncio, os, signal, socket
import uvicorn
from app.api.protocol import guarded
from app.api.server import Server
from app.config import read_settings
from app.telemetry.metrics import Metrics

async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGTERM)
    await receive()
    await asyncio.sleep(600)

protocol = guarded(read_settings(), Metrics())
with socket.create_server(("127.0.0.1", 0)) as listener:
    server = Server(uvicorn.Config(app, http=protocol, lifespan="on"), protocol, 0.0, end_seconds=1.5)
    server.run(sockets=[listener])
"""


def test_what_does_not_come_to_an_end_is_ended_with_exit_code_1(tmp_path: Path) -> None:
    """An application whose own end hangs."""
    command = [sys.executable, "-c", _HANGS]
    ended = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, timeout=60, check=False)
    assert ended.returncode == 1, ended.stderr
    assert b"stopped_in_the_middle" in ended.stdout
