"""Behind real proxies: they and the service agree where each request ends, whatever a smuggler sends."""

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.support import calls
from tests.support.demo import MODULES
from tests.support.raw import Caller, post
from tests.support.server import Server, free_port, running_server
from tests.support.smuggling import AMBIGUOUS, TEXT, get

pytestmark = pytest.mark.system

# Each proxy keeps its connections to the service, lets go of who is silent for two seconds, and logs one line for each
# request: the server that it was passed on to, or that it was passed on to none.
NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/errors;
events {{}}
http {{
    log_format server '$upstream_addr';
    access_log {folder}/requests server;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/answers;
    keepalive_timeout 2;
    client_header_timeout 2;
    client_body_timeout 2;
    upstream presage {{
        server 127.0.0.1:{backend};
        keepalive 8;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://presage;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_request_buffering off;
            proxy_next_upstream off;
        }}
    }}
}}
"""
HAPROXY = """
global
    log stdout format raw local0
defaults
    mode http
    log global
    log-format "%s"
    retries 0
    timeout connect 5s
    timeout server 20s
    timeout client 2s
    timeout http-request 2s
    timeout http-keep-alive 2s
frontend public
    bind 127.0.0.1:{port}
    default_backend presage
backend presage
    http-reuse always
    server 127.0.0.1:{backend} 127.0.0.1:{backend}
"""
PROXIES = {"nginx": (NGINX, ["/usr/sbin/nginx", "-c"]), "haproxy": (HAPROXY, ["/usr/sbin/haproxy", "-f"])}


@pytest.fixture
def server(models_dir: Path, tmp_path: Path) -> Iterator[Server]:
    """A service that answers everybody."""
    environment = {"AUTH_MODE": "none", "MODEL_MODULES": MODULES, "LOG_FORMAT": "json"}
    with running_server(models_dir, tmp_path / "log", environment) as running:
        yield running


@contextmanager
def running_proxy(name: str, backend: int, folder: Path) -> Iterator[int]:
    """The port of a proxy in front of that port; it has written its log once the block has ended."""
    settings, command = PROXIES[name]
    port = free_port()
    (folder / "settings").write_text(settings.format(folder=folder, port=port, backend=backend))
    with (folder / ("requests" if name == "haproxy" else "output")).open("wb") as output:
        process = subprocess.Popen([*command, folder / "settings"], stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until(lambda: _answers(port))
        yield port
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_and_the_service_count_the_same_requests(server: Server, tmp_path: Path, name: str) -> None:
    """What the proxy does not see as a request, the service does not answer as one; and no answer goes astray."""
    good = {
        post("/predict", TEXT): b'{"sentiment":"positive"}',
        get(b"Host: localhost"): b'{"status":"live"}',
        get(b"Host: localhost", target=b"/health/live?again"): b'{"status":"live"}',
    }

    def attack(request: bytes) -> bytes:
        with Caller(port) as caller:
            caller.send(request)
            return caller.rest()

    def ask(request: bytes) -> bytes:
        with Caller(port) as caller:
            caller.send(request)
            return caller.read().body

    before = _counted(server)
    with running_proxy(name, server.port, tmp_path) as port, ThreadPoolExecutor(len(AMBIGUOUS)) as callers:
        for _ in range(2):
            attacks = [callers.submit(attack, request) for request in AMBIGUOUS.values()]
            asked = list(good) * 20
            assert list(callers.map(ask, asked)) == [good[request] for request in asked]
            for done in attacks:
                done.result()
        assert list(callers.map(ask, asked)) == [good[request] for request in asked]
    lines = (tmp_path / "requests").read_text().splitlines()
    passed_on = sum(line == f"127.0.0.1:{server.port}" for line in lines)
    assert passed_on > len(asked)
    assert len(lines) > passed_on
    _wait_until(lambda: _counted(server) - before >= passed_on)
    assert _counted(server) - before == passed_on


def _answers(port: int) -> bool:
    try:
        return calls.get(f"http://127.0.0.1:{port}/health/live").status_code == 200
    except httpx2.TransportError:
        return False


def _counted(server: Server) -> int:
    """The requests that the service has answered, but for those to /metrics."""
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    counts = [line for line in lines if line.startswith("http_requests_total{") and '"/metrics"' not in line]
    return sum(int(float(line.split()[-1])) for line in counts)


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
