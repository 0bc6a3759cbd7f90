"""Several workers behind one socket: whatever becomes of one of them, the service goes on, and comes back by itself."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.manifest import Outputs
from app.storage.journal import segment_paths
from tests.support import calls
from tests.support.demo import MODULES
from tests.support.estimators import Deadly, Greedy, Hanging, Seizing
from tests.support.ledger import Ledger, answers, load
from tests.support.server import ROOT, TRIED, Server, clean_environment, free_port, running_server
from tests.support.tokens import SECRET, token
from tests.support.versions import one_golden, write_classifier, write_version

ENVIRONMENT = {"DEFAULT_MODEL": "toy", "MODEL_MODULES": MODULES, "LOG_FORMAT": "json", "WORKERS": "2"}
NUMBER: dict[str, Any] = {"task": "regression", "outputs": Outputs(target="number"), "golden": one_golden(0.0, x=0.0)}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """One quick model, in a folder of the test's own."""
    write_classifier(tmp_path / "models")
    return tmp_path / "models"


@contextmanager
def service(models: Path, folder: Path, **environment: str) -> Iterator[Server]:
    """Two workers with a database of their own, both of which serve."""
    arguments = ["--migrate"]
    with running_server(models, folder / "log", {**ENVIRONMENT, **environment}, arguments=arguments) as server:
        server.wait_for_output("(generation_serves)")
        yield server


def serving(server: Server) -> int:
    """How many workers take requests."""
    workers: dict[str, int] = server.wait_for("/health/ready", 200).json()["workers"]
    assert workers["wanted"] == 2
    return workers["serving"]


def children(pid: int) -> list[int]:
    """The processes that it has started and that live, oldest first."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def workers(server: Server) -> list[int]:
    """The workers' pids; in the middle of a reload, those of both generations."""
    return [worker for template in children(server.process.pid) for worker in children(template)]


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> float:
    """How many seconds it took until it was so."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + seconds, "it did not come to that"
        time.sleep(0.02)
    return time.monotonic() - started


def lives(pid: int) -> bool:
    """Whether there is such a process, and more than a zombie of it."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def may_listen(port: int) -> bool:
    """Whether nobody else does."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def predict(server: Server, number: float, model: str = "toy", timeout: float = 20) -> httpx2.Response:
    """On a connection of its own."""
    headers = {"Authorization": f"Bearer {token().decode()}"}
    url = f"{server.url}/v2/predict/{model}"
    return calls.post(url, json={"inputs": {"x": number}}, headers=headers, timeout=timeout)


def assert_nothing_was_lost(ledger: Ledger, folder: Path, *, beside: int = 0) -> None:
    """Everything that was answered is in the database once, as soon as what dead workers have left is there, too."""
    places = {"JOURNAL_DIR": f"{folder}/journal", "DATABASE_URL": f"sqlite:///{folder}/presage.db"}
    command = [sys.executable, "-m", "app", "log", "drain"]
    deadline = time.monotonic() + 30
    while segment_paths(folder / "journal"):  # a killed process holds its own for as long as the kernel takes to end it
        assert time.monotonic() < deadline, "somebody holds a segment"
        subprocess.run(command, cwd=ROOT, env=clean_environment(**places), check=True, capture_output=True, timeout=60)
    ledger.assert_matches(places["DATABASE_URL"], beside=beside)


def test_a_worker_that_is_killed_is_replaced_and_costs_only_what_it_was_working_on(
    models: Path, tmp_path: Path
) -> None:
    """Its sibling serves meanwhile, and nothing that was answered is lost."""
    with service(models, tmp_path) as server, load(server) as ledger:
        answers(ledger, 200)
        victim, sibling = workers(server)
        os.kill(victim, signal.SIGKILL)
        assert wait_until(lambda: serving(server) == 2 and victim not in workers(server)) < 3
        assert sibling in workers(server)
        answers(ledger, 200)
        ended = server.wait_for_event("worker_ended")
        assert (ended["pid"], ended["reason"], ended["code"]) == (victim, "killed", 137)
        # Callers that had a connection to it, each once.
        assert set(ledger.statuses) <= {200, "broken"}
        assert ledger.statuses["broken"] <= 4
    assert_nothing_was_lost(ledger, tmp_path)


def _places(folder: Path) -> dict[str, str]:
    return {"JOURNAL_DIR": f"{folder}/journal", "DATABASE_URL": f"sqlite:///{folder}/presage.db"}


@pytest.mark.parametrize("how", ["frozen", "seized"])
def test_a_worker_whose_loop_stands_still_is_replaced(models: Path, tmp_path: Path, how: str) -> None:
    """Frozen from outside, or held by a model; its sibling serves meanwhile, and the log says where it hung."""
    write_version(models, Seizing().fit(None, None), name="seizing", **NUMBER)
    (models / "seizing/aliases.json").write_text('{"champion": 1}')
    with service(models, tmp_path, WORKER_TIMEOUT_SECONDS="1") as server:
        before = workers(server)
        if how == "frozen":
            os.kill(before[0], signal.SIGSTOP)
        else:
            with pytest.raises(httpx2.TransportError):
                predict(server, 60, "seizing")
        wait_until(lambda: len(set(workers(server)) - set(before)) == 1 and serving(server) == 2, 10)
        ended = server.wait_for_event("worker_ended")
        assert ended["reason"] == "hung"
        assert predict(server, 3).status_code == 200
        if how == "seized":
            assert "in predict" in ended["stack"]


def test_a_worker_that_grows_is_replaced_before_it_leaves(models: Path, tmp_path: Path) -> None:
    """No request fails for it."""
    write_version(models, Greedy().fit(None, None), name="greedy", **NUMBER)
    (models / "greedy/aliases.json").write_text('{"champion": 1}')
    with service(models, tmp_path, WORKER_MAX_BYTES=str(300 << 20)) as server:
        before = workers(server)
        with load(server) as ledger:
            assert predict(server, 400, "greedy").status_code == 200
            wait_until(lambda: len(set(workers(server)) - set(before)) == 1 and len(workers(server)) == 2)
        assert set(ledger.statuses) == {200}
        assert server.wait_for_event("worker_ended")["reason"] == "memory"
        assert server.stop() == 0
    assert_nothing_was_lost(ledger, tmp_path, beside=1)


def test_siblings_serve_while_a_worker_cannot_start(models: Path, tmp_path: Path) -> None:
    """It is tried again, ever less often, and serves once it can."""
    with service(models, tmp_path, AUTH_MODE="jwt", JWT_SECRET=SECRET) as server:
        bad = tmp_path / "keys/broken.pem"
        bad.parent.mkdir(exist_ok=True)
        bad.write_text("no key")
        victim, sibling = workers(server)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(server.events("worker_ended")) >= 4)
        assert predict(server, 3).status_code == 200
        assert serving(server) == 1
        ended = server.events("worker_ended")
        assert {event["reason"] for event in ended[1:]} == {"start_failed"}
        assert [event["pause"] for event in ended[:4]] == [0.0, 0.5, 1.0, 2.0]
        bad.unlink()
        wait_until(lambda: serving(server) == 2)
        assert sibling in workers(server)


def test_a_service_that_cannot_start_ends_at_once_and_says_why(models: Path, tmp_path: Path) -> None:
    """One line, exit code 1, and nothing left behind."""
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "broken.pem").write_text("no key")
    places = {**_places(tmp_path), "JWT_KEYS_DIR": str(keys), "MODELS_DIR": str(models), "PORT": str(free_port())}
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "app", "serve"],
        cwd=ROOT,
        env=clean_environment(**{**ENVIRONMENT, **places}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == "presage: invalid settings\n  JWT_KEYS_DIR: broken.pem: is no unencrypted key in PEM\n"
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("who", ["supervisor", "template"])
def test_nobody_is_left_on_the_port_when_those_above_are_killed(models: Path, tmp_path: Path, who: str) -> None:
    """Without its supervisor all end within a second; without its template the service begins anew."""
    with service(models, tmp_path) as server:
        supervisor = server.process.pid
        template = children(supervisor)[0]
        before = workers(server)
        os.kill(supervisor if who == "supervisor" else template, signal.SIGKILL)
        everybody = [*before, template, *([supervisor] if who == "supervisor" else [])]
        assert wait_until(lambda: not any(map(lives, everybody))) < 5
        if who == "supervisor":
            wait_until(lambda: may_listen(server.port))
        else:
            wait_until(lambda: serving(server) == 2)
            assert predict(server, 3).status_code == 200
            assert server.stop() == 0


def test_a_reload_under_load_brings_what_is_there_now_and_fails_no_request(models: Path, tmp_path: Path) -> None:
    """New processes, another version, and each request answered by one of the two."""
    with service(models, tmp_path) as server:
        before = workers(server)
        with load(server) as ledger:
            answers(ledger, 100)
            write_classifier(models, version=2)
            (models / "toy/aliases.json").write_text('{"champion": 2}')
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: len(workers(server)) == 2 and not set(before) & set(workers(server)))
            answers(ledger, 100)
        assert set(ledger.statuses) == {200}
        assert predict(server, 3).json()["version"] == 2
        assert server.stop() == 0
    assert_nothing_was_lost(ledger, tmp_path, beside=1)


@pytest.mark.parametrize("estimator", [Deadly(), Hanging()], ids=["crashes", "hangs"])
def test_a_reload_that_does_not_come_to_an_end_harms_nobody(models: Path, tmp_path: Path, estimator: Any) -> None:
    """A model that ends the process which loads it is refused; while one keeps it, the workers from before go on."""
    with service(models, tmp_path, **TRIED) as server:
        before = workers(server)
        write_version(models, estimator, name="worse", **NUMBER)
        (models / "worse/aliases.json").write_text('{"champion": 1}')
        server.process.send_signal(signal.SIGHUP)
        if isinstance(estimator, Deadly):
            wait_until(lambda: len(server.events("generation_serves")) == 2)
            assert server.wait_for_event("model_refused", model="worse", reason="trial_crashed")
        else:
            wait_until(lambda: len(server.events("generation_begins")) == 2)
            assert workers(server) == before
        assert predict(server, 3).status_code == 200
        assert server.stop() == 0


def test_the_printed_call_is_printed_once(models: Path, tmp_path: Path) -> None:
    """Not by every worker."""
    with service(models, tmp_path, LOG_FORMAT="console") as server:
        server.wait_for_output("(Try it)")
        os.kill(workers(server)[0], signal.SIGKILL)
        wait_until(lambda: serving(server) == 2)
        assert server.output().count("Try it") == 1


def test_two_workers_share_the_work_of_many_connections(models: Path, tmp_path: Path) -> None:
    """Neither has less than a quarter."""
    with service(models, tmp_path) as server, load(server, callers=16, pause=0) as ledger:
        answers(ledger, 2000)
        shares = sorted(_cpu_seconds(worker) for worker in workers(server))
        assert shares[0] > sum(shares) / 4


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_metrics_are_those_of_the_service_whoever_is_asked_and_whoever_died(models: Path, tmp_path: Path) -> None:
    """Exact at once, and no less after a kill."""
    with service(models, tmp_path) as server:
        for number in range(20):
            assert predict(server, number).status_code == 200
        assert {_counted(server) for _ in range(8)} == {20}
        os.kill(workers(server)[0], signal.SIGKILL)
        wait_until(lambda: serving(server) == 2)
        assert {_counted(server) for _ in range(8)} == {20}
        text = calls.get(f"{server.url}/metrics").text
        assert 'presage_workers{state="serving"} 2.0' in text
        assert 'presage_worker_restarts_total{reason="killed"} 1.0' in text


def _counted(server: Server) -> float:
    lines = calls.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("presage_predictions_total{"))


def test_a_plan_is_one_plan_over_all_workers(models: Path, tmp_path: Path) -> None:
    """Without Redis, each request on a connection of its own; and a worker that is killed gives nobody a plan anew."""
    access = {"AUTH_MODE": "jwt", "JWT_SECRET": SECRET, "RATE_LIMIT": "60/hour"}
    with service(models, tmp_path, **access) as server:
        for _ in range(20):
            assert predict(server, 3).status_code == 200
        os.kill(workers(server)[0], signal.SIGKILL)
        wait_until(lambda: serving(server) == 2)
        statuses = [predict(server, 3).status_code for _ in range(80)]
        assert set(statuses) == {200, 429}
        assert abs(statuses.count(200) - 40) <= 1


def test_a_token_revoked_by_one_worker_is_refused_by_all_within_a_second(models: Path, tmp_path: Path) -> None:
    """Each of them remembered it, and it was good a moment before."""
    with service(models, tmp_path, AUTH_MODE="jwt", JWT_SECRET=SECRET) as server:
        given = {"Authorization": f"Bearer {token(sub='leaver', jti='the-leavers-token').decode()}"}
        admin = {"Authorization": f"Bearer {token(sub='root', scope='admin').decode()}"}

        def accepted() -> bool:
            return calls.get(f"{server.url}/v2/catalog", headers=given).status_code != 401

        assert all(accepted() for _ in range(12))
        body = {"token": given["Authorization"].removeprefix("Bearer ")}
        assert calls.post(f"{server.url}/admin/revocations", json=body, headers=admin).status_code == 204
        revoked = last = time.monotonic()
        refused = 0
        while refused < 12:  # on connections of their own, so that both workers are asked
            asked = time.monotonic()
            refused = 0 if accepted() else refused + 1
            last = last if refused else asked
            assert asked < revoked + 10
        assert last - revoked < 1


def test_a_full_disk_ends_no_worker_and_hides_no_metric(models: Path, small_disk: Path, tmp_path: Path) -> None:
    """Predictions are refused, as the policy says, until there is room again."""
    with service(models, tmp_path, JOURNAL_DIR=str(small_disk / "journal")) as server:
        before = workers(server)
        filler = small_disk / "filler"
        with contextlib.suppress(OSError):
            filler.write_bytes(b"0" * (2 << 20))
        wait_until(lambda: {predict(server, 3).status_code for _ in range(8)} == {503})
        text = calls.get(f"{server.url}/metrics").text
        assert "presage_log_writable 0.0" in text
        assert 'presage_workers{state="serving"} 2.0' in text
        filler.unlink()
        wait_until(lambda: {predict(server, 3).status_code for _ in range(8)} == {200})
        assert workers(server) == before
