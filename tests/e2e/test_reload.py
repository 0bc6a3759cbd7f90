"""Versions come and go while callers are served: nobody's request fails, and each answer is of one version."""

import json
import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import calls
from tests.support.demo import MODULES
from tests.support.estimators import Deadly, Looping
from tests.support.ledger import Ledger, answers, load
from tests.support.server import TRIED, Server, running_server
from tests.support.versions import NUMBER, one_golden, point, write_constant, write_version

ENVIRONMENT = {"DEFAULT_MODEL": "toy", "MODEL_MODULES": MODULES, "LOG_FORMAT": "json", **TRIED}
ODD: dict[str, Any] = {"task": "regression", "outputs": NUMBER, "golden": one_golden(0.0)}
# What the service promises to its users, once a version can be loaded.
CONVERGES_SECONDS = 2.0


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A model with one version, in a folder of the test's own."""
    write_constant(tmp_path / "models", 1)
    point(tmp_path / "models", champion=1)
    return tmp_path / "models"


def serving(models: Path, folder: Path, workers: int, **environment: str) -> Any:
    """A server with so many workers and a database."""
    settings = {**ENVIRONMENT, "WORKERS": str(workers), **environment}
    return running_server(models, folder / "log", settings, arguments=["--migrate"])


def versions(server: Server, count: int = 24) -> set[int]:
    """What so many callers are answered by, each over a connection of its own: all workers have some of them."""
    found = set()
    for _ in range(count):
        answer = calls.post(f"{server.url}/v2/predict", json={"inputs": {"x": 3}}, timeout=20)
        found.add(answer.json()["version"])
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for it, at most as long as only a hang takes."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.02)


def skew(server: Server) -> float:
    """How much the workers differ, by the metric."""
    text = calls.get(f"{server.url}/metrics", timeout=20).text
    found = re.search(r"^presage_models_skew (\S+)$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def assert_each_answer_is_of_one_version(ledger: Ledger, folder: Path) -> None:
    """What callers were told, and what is on record."""
    assert set(ledger.statuses) == {200}
    assert all(version == prediction for version, prediction in ledger.told)
    with closing(sqlite3.connect(folder / "presage.db")) as database:
        rows = database.execute("select version, output from predictions").fetchall()
    assert rows
    assert all(float(output) == version for version, output in rows)


@pytest.mark.parametrize("workers", [1, 2])
def test_versions_are_swapped_under_load_without_a_failed_request(models: Path, tmp_path: Path, workers: int) -> None:
    """Published, promoted and let go, with all workers on the new one within two seconds of its being loadable."""
    with serving(models, tmp_path, workers) as server:
        with load(server) as ledger:
            for version in range(2, 6):
                write_constant(models, version)
                point(models, champion=version)
                wait_until(partial(_all_answer, server, version))
                answers(ledger, 20)
            if workers > 1:
                assert skew(server) == 0
            catalog = calls.get(f"{server.url}/v2/catalog/toy", timeout=20).json()
        assert server.stop() == 0
    assert len(ledger.told) == 5
    assert max(_seconds_until_taken(server, workers)) < CONVERGES_SECONDS
    assert {v["version"] for v in catalog["versions"] if v["state"] == "serving"} == {5}
    assert_each_answer_is_of_one_version(ledger, tmp_path)


def _all_answer(server: Server, version: int) -> bool:
    return versions(server) == {version}


def _seconds_until_taken(server: Server, workers: int) -> Iterator[float]:
    """From the end of each version's trial until the last worker has moved the alias to it."""
    for trial in server.events("trial_ended"):
        moves = [event for event in server.events("aliases_moved") if event["after"]["champion"] == trial["version"]]
        if moves:
            assert len(moves) == workers
            began = datetime.fromisoformat(trial["timestamp"])
            yield max((datetime.fromisoformat(move["timestamp"]) - began).total_seconds() for move in moves)


def test_a_worker_that_comes_later_begins_with_the_version_that_is_active(models: Path, tmp_path: Path) -> None:
    """It was forked from a process that had loaded another one."""
    with serving(models, tmp_path, 2) as server:
        server.wait_for_output("(generation_serves)")
        write_constant(models, 2)
        point(models, champion=2)
        wait_until(lambda: versions(server) == {2})
        with load(server) as ledger:
            (first, _) = [event["pid"] for event in server.events("worker_serving")]
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: len(server.events("worker_serving")) == 3)
            assert versions(server) == {2}
            assert skew(server) == 0
        assert set(ledger.told) == {(2, 2.0)}


@pytest.mark.parametrize(
    ("estimator", "reason"), [(Deadly(), "trial_crashed"), (Looping(), "trial_timeout")], ids=["crashes", "loops"]
)
def test_a_version_that_does_harm_does_it_in_a_process_of_its_own(
    models: Path, tmp_path: Path, estimator: Any, reason: str
) -> None:
    """The old one goes on, no worker is lost, and the reason is in the log and in the catalog."""
    with serving(models, tmp_path, 2, MODEL_TRIAL_SECONDS="1") as server, load(server) as ledger:
        server.wait_for_output("(generation_serves)")
        write_version(models, estimator, version=2, **ODD)
        point(models, champion=2)
        server.wait_for_event("model_refused", reason=reason)
        answers(ledger, 100)
        entry = calls.get(f"{server.url}/v2/catalog/toy", timeout=20).json()
        assert entry["aliases"] == {"champion": 1}
        assert entry["pending"] == {"champion": 2}
        assert [v["reason"] for v in entry["versions"] if v["state"] == "refused"] == [reason]
        server.wait_for("/health/ready", 200)
        assert not server.events("worker_ended")
    assert set(ledger.statuses) == {200}
    assert set(ledger.told) == {(1, 1.0)}


def test_any_version_is_answered_by_when_it_is_asked_for(models: Path, tmp_path: Path) -> None:
    """The first caller waits while it is loaded, or is told to come back."""
    for version in (2, 3):
        write_constant(models, version)
    with serving(models, tmp_path, 1) as server, server.client() as client:
        hurried = {"X-Request-Timeout-Ms": "1"}
        answer = client.post("/v2/predict/toy?version=3", json={"inputs": {"x": 3}}, headers=hurried)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        for path, body in (("/v2/predict/toy", {"x": 3}), ("/v2/batch/toy", [{"x": 3}])):
            answer = client.post(f"{path}?version=2", json={"inputs": body})
            assert answer.json()["version"] == 2
        assert client.post("/v2/predict/toy?version=3", json={"inputs": {"x": 3}}).json()["version"] == 3
        missing = [client.post("/v2/predict/toy?version=4", json={"inputs": {"x": 3}}) for _ in range(2)]
        assert [answer.status_code for answer in missing] == [404, 404]
        write_constant(models, 4)
        wait_until(lambda: 4 in [v["version"] for v in client.get("/v2/catalog/toy").json()["versions"]])
        # By now its head is known, and it goes the short way.
        assert client.post("/v2/predict/toy?version=4", json={"inputs": {"x": 3}}).json()["version"] == 4
        assert client.post("/v2/predict/toy", json={"inputs": {"x": 3}}).json()["version"] == 1


def test_workers_share_their_models_again_once_nothing_changes(models: Path, tmp_path: Path) -> None:
    """What came while they ran each of them has for itself; new workers do not."""
    sharing = {"SHARE_MODELS_ABOVE_BYTES": "1000000", "SHARE_MODELS_AFTER_SECONDS": "0.5"}
    with serving(models, tmp_path, 2, **sharing) as server:
        server.wait_for_output("(generation_serves)")
        with load(server) as ledger:
            write_constant(models, 2, ballast=8 << 20)
            point(models, champion=2)
            assert server.wait_for_event("models_shared_again")["private_bytes"] >= 8 << 20
            wait_until(lambda: len(server.events("generation_serves")) == 2)
            answers(ledger, 50)
            assert versions(server) == {2}
        assert server.stop() == 0
    assert_each_answer_is_of_one_version(ledger, tmp_path)


def test_rules_for_the_log_are_heeded_from_then_on(models: Path, tmp_path: Path) -> None:
    """What is to be dropped is dropped without a restart."""
    with serving(models, tmp_path, 1) as server, server.client() as client:
        assert client.post("/v2/predict", json={"inputs": {"x": 3}}).status_code == 200
        (models / "toy/log.json").write_text('{"default": "drop"}')
        server.wait_for_event("rules_changed")
        assert client.post("/v2/predict", json={"inputs": {"x": 3}}).status_code == 200
        assert server.stop() == 0
    with closing(sqlite3.connect(tmp_path / "presage.db")) as database:
        rows = database.execute("select inputs from predictions order by id").fetchall()
    assert [json.loads(inputs) for (inputs,) in rows] == [{"x": 3}, {}]
