"""Behind the balancers of deploy/: two instances are one service, and one of them may go at any time."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol

import httpx2
import pytest

from tests.support import calls
from tests.support.ledger import answers, load
from tests.support.raw import Caller
from tests.support.server import ROOT, Server, clean_environment, free_port, running_server
from tests.support.versions import write_classifier

pytestmark = pytest.mark.system

ENVIRONMENT = {"DEFAULT_MODEL": "toy", "LOG_FORMAT": "json", "TRUSTED_PROXIES": "127.0.0.1", "LAME_DUCK_SECONDS": "2"}
# Of what has no credential: enough for the tests, and little enough to be used up.
ENVIRONMENT["ADDRESS_RATE_LIMIT"] = "600/minute"


@dataclass(frozen=True)
class Balancer:
    """Its name, and where callers reach it."""

    name: str
    url: str


class Listening(Protocol):
    """What a balancer stands in front of."""

    @property
    def port(self) -> int:
        """Where it listens."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """For each instance one quick model, and one that is refused; a third is refused by the first instance alone."""
    roots = [tmp_path_factory.mktemp("models") for _ in range(2)]
    for root in roots:
        for name in ("toy", "broken", "half"):
            write_classifier(root, name=name)
        (root / "broken/1/model.joblib").write_bytes(b"cut off")
    (roots[0] / "half/1/model.joblib").write_bytes(b"cut off")
    return roots


@pytest.fixture(scope="module")
def lasting(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two instances for the tests that leave them as they are."""
    with _running_instances(models, tmp_path_factory.mktemp("lasting")) as running:
        yield running


@pytest.fixture
def instances(models: list[Path], tmp_path: Path) -> Iterator[list[Server]]:
    """Two instances for one test."""
    with _running_instances(models, tmp_path) as running:
        yield running


@contextmanager
def _running_instances(models: list[Path], folder: Path) -> Iterator[list[Server]]:
    """They share nothing."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(running_server(root, folder / f"{n}/log", ENVIRONMENT, arguments=["--migrate"]))
            for n, root in enumerate(models)
        ]


@pytest.fixture(params=["nginx", "haproxy"])
def before_lasting(request: pytest.FixtureRequest, lasting: list[Server], tmp_path: Path) -> Iterator[Balancer]:
    """In front of those that last."""
    with _running_balancer(request.param, lasting, tmp_path) as running:
        yield running


@pytest.fixture(params=["nginx", "haproxy"])
def balancer(request: pytest.FixtureRequest, instances: list[Server], tmp_path: Path) -> Iterator[Balancer]:
    """In front of those for one test."""
    with _running_balancer(request.param, instances, tmp_path) as running:
        yield running


@contextmanager
def _running_balancer(name: str, instances: Sequence[Listening], folder: Path) -> Iterator[Balancer]:
    """The file of deploy/ as it is, but for addresses."""
    port = free_port()
    command, environment = COMMANDS[name](instances, port, folder)
    with (folder / "balancer").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until(lambda: _status(url) == 200)
        yield Balancer(name, url)
    finally:
        process.terminate()
        process.wait(30)


def _haproxy(instances: Sequence[Listening], port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    places = {f"PRESAGE_{n}": f"127.0.0.1:{instance.port}" for n, instance in enumerate(instances, 1)}
    environment = {**clean_environment(), "BIND": f"127.0.0.1:{port}", **places}
    command = ["/usr/sbin/haproxy", "-f", f"{ROOT}/deploy/haproxy.cfg"]
    subprocess.run([*command, "-c"], check=True, env=environment, capture_output=True)
    return command, environment


def _nginx(instances: Sequence[Listening], port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    text = (ROOT / "deploy/nginx.conf").read_text()
    for there, here in (("8001", instances[0].port), ("8002", instances[1].port)):
        text = text.replace(f"127.0.0.1:{there}", f"127.0.0.1:{here}")
    (folder / "nginx.conf").write_text(text.replace("listen 8080", f"listen 127.0.0.1:{port}"))
    command = ["/usr/sbin/nginx", "-c", f"{folder}/nginx.conf"]
    command += ["-g", f"daemon off; master_process off; pid {folder}/pid; error_log stderr;"]
    subprocess.run([*command, "-t"], check=True, capture_output=True)
    return command, dict(clean_environment())


COMMANDS: dict[str, Callable[[Sequence[Listening], int, Path], tuple[list[str], dict[str, str]]]] = {
    "nginx": _nginx,
    "haproxy": _haproxy,
}


def test_both_instances_get_requests_in_turns(before_lasting: Balancer, lasting: list[Server]) -> None:
    """About as many each."""
    before = [_predicted(instance) for instance in lasting]
    with load(before_lasting) as ledger:
        answers(ledger, 200)
    assert set(ledger.statuses) == {200}
    shares = sorted(_predicted(instance) - count for instance, count in zip(lasting, before, strict=True))
    assert shares[0] > sum(shares) / 3


def test_an_instance_that_is_killed_costs_no_request(
    balancer: Balancer, instances: list[Server], models: list[Path], tmp_path: Path
) -> None:
    """Whatever it was working on is asked of the other one; and when it is back, it gets its part again."""
    with load(balancer, callers=8) as ledger:
        answers(ledger, 200)
        instances[0].process.kill()
        instances[0].process.wait()
        answers(ledger, 200)
        assert calls.get(f"{balancer.url}/health/live").status_code == 200
        again = {**ENVIRONMENT, "PORT": str(instances[0].port)}
        with running_server(models[0], tmp_path / "again/log", again, wait=False) as back:
            back.wait_for("/health/ready", 200)
            _wait_until(lambda: _predicted(back) > 50)
    assert set(ledger.statuses) == {200}


def test_an_instance_that_is_stopped_costs_no_request(balancer: Balancer, instances: list[Server]) -> None:
    """Not one, whether its balancer has noticed or not."""
    with load(balancer, callers=8) as ledger:
        answers(ledger, 200)
        assert instances[0].stop() == 0
        answers(ledger, 200)
    assert set(ledger.statuses) == {200}


def test_what_one_instance_refuses_is_asked_of_the_other(before_lasting: Balancer) -> None:
    """Also where head and body come in two pieces, as from many libraries."""
    with httpx2.Client(base_url=before_lasting.url) as caller:
        statuses = [caller.post("/v2/predict/half", json={"inputs": {"x": 3}}).status_code for _ in range(20)]
    assert statuses == [200] * 20


def test_refusals_of_all_instances_take_none_of_them_out(before_lasting: Balancer) -> None:
    """A caller who asks for what every instance refuses is told so, each time, and nobody else notices."""
    with httpx2.Client(base_url=before_lasting.url) as caller:
        refused = [caller.post("/v2/predict/broken", json={"inputs": {"x": 3}}) for _ in range(6)]
        served = [caller.post("/v2/predict", json={"inputs": {"x": 3}}).status_code for _ in range(20)]
    assert [answer.status_code for answer in refused] == [503] * 6
    assert all("retry-after" in answer.headers for answer in refused)
    assert served == [200] * 20


@pytest.mark.parametrize("name", ["nginx", "haproxy"])
def test_a_caller_cannot_name_himself_in_the_place_of_the_platform(
    models: list[Path], tmp_path: Path, name: str
) -> None:
    """The header that names who was authenticated is the balancer's, whom the service trusts."""
    environment = {**ENVIRONMENT, "AUTH_MODE": "platform", "PLATFORM_HEADER": "X-Forwarded-User"}
    claim = {"X-Forwarded-User": "somebody-else"}
    with running_server(models[0], tmp_path / "log", environment, arguments=["--migrate"]) as server:
        with _running_balancer(name, [server, server], tmp_path) as balancer:
            through = calls.post(f"{balancer.url}/v2/predict", json={"inputs": {"x": 3}}, headers=claim)
        assert through.status_code == 401
        assert calls.post(f"{server.url}/v2/predict", json={"inputs": {"x": 3}}, headers=claim).status_code == 200


def test_only_the_balancer_is_believed_about_addresses(before_lasting: Balancer) -> None:
    """A caller that claims to be somebody else each time uses up the budget of its own address, and nobody else's."""
    network = f"127.0.{len(before_lasting.name)}"  # not the same for both balancers: the instances remember
    from_one, from_other = (
        httpx2.Client(base_url=before_lasting.url, transport=httpx2.HTTPTransport(local_address=address))
        for address in (f"{network}.5", f"{network}.6")
    )
    with from_one, from_other:
        claims = ({"X-Forwarded-For": f"10.1.{n // 250}.{n % 250}"} for n in range(1500))
        statuses = [from_one.get("/nowhere", headers=claim).status_code for claim in claims]
        assert set(statuses) == {404, 429}
        assert from_other.get("/nowhere").status_code == 404


def test_hundreds_of_callers_keep_their_connections(before_lasting: Balancer) -> None:
    """More than the 512 that nginx has room for unless told otherwise; none is closed to let another in."""
    request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as stack:
        callers = [stack.enter_context(Caller(int(before_lasting.url.rpartition(":")[2]))) for _ in range(600)]
        for caller in callers * 2:
            caller.send(request)
            assert caller.read().status == 200


@pytest.mark.parametrize(
    ("path", "times"),
    [("/v2/predict", 2), ("/admin/clients", 1), ("/presage/admin/clients", 1), ("/presage/auth/token", 1)],
)
@pytest.mark.parametrize("name", ["nginx", "haproxy"])
def test_only_predictions_are_asked_twice(tmp_path: Path, name: str, path: str, times: int) -> None:
    """Of instances that end before they answer: what administrators do is asked of one, under a ROOT_PATH, too."""
    with ExitStack() as stack:
        instances = [stack.enter_context(Dying()) for _ in range(2)]
        balancer = stack.enter_context(_running_balancer(name, instances, tmp_path))
        assert calls.post(balancer.url + path, json={}).status_code == 502
        assert [*instances[0].asked, *instances[1].asked] == [path] * times


class Dying(ThreadingHTTPServer):
    """Is healthy, and closes the connection of whoever asks it for more, as the kernel does for a process that ends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Closing)
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.server_port

    def server_close(self) -> None:
        """End, and wait for it."""
        self.shutdown()
        self._thread.join()
        super().server_close()


class _Closing(BaseHTTPRequestHandler):
    server: Dying

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)

    def log_request(self, *_: object) -> None:
        """Nothing: balancers ask often."""


def _predicted(instance: Server) -> float:
    lines = calls.get(f"{instance.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("presage_predictions_total{"))


def _status(url: str) -> int:
    try:
        return calls.get(f"{url}/health/live").status_code
    except httpx2.TransportError:
        return 0


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
