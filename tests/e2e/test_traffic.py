"""Champion, challenger and shadow behind a real server of two workers: whoever is asked, it is one service."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from app.inference.traffic import Split
from app.manifest import TrafficRules
from tests.e2e.test_workers import service
from tests.support.demo import MODULES
from tests.support.estimators import Treacherous
from tests.support.server import running_server
from tests.support.tokens import SECRET, token
from tests.support.versions import NUMBER, one_golden, write_classifier, write_roles, write_version

RULES: dict[str, Any] = {"challenger_weight": 0.4, "sticky_by": "header:X-User"}
USERS = [f"user {n}" for n in range(60)]
TRAPS = {"raises": 13, "sleeps": 14, "counts": 15}


def _write_pair(root: Path, name: str, **rules: Any) -> None:
    write_classifier(root, name=name)
    write_classifier(root, name=name, version=2, big=5)
    write_classifier(root, name=name, version=3, big=15)
    write_roles(root, name, {"champion": 1, "challenger": 2, "shadow": 3}, **rules)


def _expected(key: str) -> int:
    return 2 if Split("toy", 2, TrafficRules(**RULES)).takes(key.encode()) else 1


def test_a_caller_keeps_a_version_in_every_worker_and_over_a_restart(tmp_path: Path) -> None:
    """By arithmetic alone; and the figures of the comparison are those of all workers, whichever is asked."""
    models = tmp_path / "models"
    _write_pair(models, "toy", **RULES)
    expected = [_expected(user) for user in USERS]
    for life in ("first", "second"):
        with service(models, tmp_path / life) as server, ExitStack() as stack:
            clients: list[httpx2.Client] = []
            while len(server.events("shadow_began")) < 2 or len(clients) < 4:  # until each worker has had some
                clients.append(stack.enter_context(server.client()))
                answers = [_ask(clients[-1], "toy", 7, {"x-user": user}) for user in USERS]
                assert [answer["version"] for answer in answers] == expected
            for client in clients:
                _check_comparison(client, {n: len(clients) * expected.count(n) for n in (1, 2)})


def _check_comparison(client: httpx2.Client, rows: dict[int, int]) -> None:
    found = _until(lambda: _comparison(client, "toy"), lambda c: _tried(c) == sum(rows.values()))
    assert found["challenger"]["champion"]["rows"] == rows[1]
    assert found["challenger"]["challenger"]["rows"] == rows[2]
    beside = {pair["version"]: pair["outcomes"] for pair in found["shadow"]["beside"]}
    assert beside == {1: {"agreed": rows[1]}, 2: {"flipped": rows[2]}}


def test_without_a_header_the_key_is_who_asks(tmp_path: Path) -> None:
    """A caller keeps a version whatever connection and credential they come with."""
    models = tmp_path / "models"
    rules: dict[str, Any] = {"challenger_weight": 0.5}
    _write_pair(models, "toy", **rules)
    split = Split("toy", 2, TrafficRules(**rules))
    environment = {"DEFAULT_MODEL": "toy", "AUTH_MODE": "jwt", "JWT_SECRET": SECRET}
    seen = set()
    with running_server(models, tmp_path / "log", environment, arguments=["--migrate"]) as server:
        for subject in ("ada", "bob", "cyn", "dan", "eve", "fay"):
            for expires in (4_000_000_000, 4_000_000_001):
                credential = token(sub=subject, scope="predict", exp=expires).decode()
                bearer = {"authorization": f"Bearer {credential}"}
                with server.client() as client:
                    for _ in range(3):  # the second and third take the short way
                        version = _ask(client, "toy", 1, bearer)["version"]
                        assert version == (2 if split.takes(subject.encode()) else 1)
                        seen.add(version)
    assert seen == {1, 2}


def test_whatever_a_shadow_does_callers_notice_nothing(tmp_path: Path) -> None:
    """One raises, one sleeps and one counts for ever: all answers are as before, and none is late."""
    models = tmp_path / "models"
    numbers = np.arange(20.0).reshape(-1, 1)
    ridge = Ridge().fit(numbers, numbers[:, 0])
    golden = one_golden(float(ridge.predict([[1.0]])[0]))
    regression: dict[str, Any] = {"task": "regression", "outputs": NUMBER}
    for name in TRAPS:
        write_version(models, ridge, name=name, golden=golden, **regression)
        shadow = Treacherous().fit(None, None)
        write_version(models, shadow, name=name, version=2, golden=one_golden(0.0, x=0.0), **regression)
        write_roles(models, name, {"champion": 1, "shadow": 2})
    environment = {"DEFAULT_MODEL": "raises", "MODEL_MODULES": MODULES, "LOG_FORMAT": "json"}
    with running_server(models, tmp_path / "log", environment, arguments=["--migrate"]) as server:
        with server.client() as client:
            answered, latest = _spring(client, {x: float(ridge.predict([[x]])[0]) for x in (1, 13, 14, 15)})
            assert answered > 1_000
            assert latest < 1.0
            rows = {name: _comparison(client, name)["shadow"]["beside"][0]["outcomes"] for name in TRAPS}
        assert rows["raises"]["failed"] > 100
        assert server.wait_for_event("traffic_stopped", model="counts")["reason"] == "hung"
        assert server.wait_for_event("shadow_interrupted", model="counts")
        assert not server.events("request_failed")


def _spring(client: httpx2.Client, expected: dict[int, float]) -> tuple[int, float]:
    """Ask what the shadows fall for until two of them are given up; how many answers came, and the latest's seconds."""
    answered, latest, stopped = 0, 0.0, False
    deadline = time.monotonic() + 30
    while not stopped:
        assert time.monotonic() < deadline
        for name, x in (*TRAPS.items(), *((name, 1) for name in TRAPS)):
            began = time.perf_counter()
            answer = _ask(client, name, x)
            latest = max(latest, time.perf_counter() - began)
            assert answer["prediction"] == pytest.approx(expected[x], abs=1e-9)
            assert answer["version"] == 1
            answered += 1
        if answered % 60 == 0:
            stopped = all(_comparison(client, name)["shadow"].get("stopped") == "hung" for name in ("sleeps", "counts"))
    return answered, latest


def _ask(client: httpx2.Client, model: str, x: float, headers: dict[str, str] | None = None) -> Any:
    answer = client.post(f"/v2/predict/{model}", json={"inputs": {"x": x}}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _comparison(client: httpx2.Client, model: str) -> Any:
    answer = client.get(f"/v2/catalog/{model}/comparison")
    assert answer.status_code == 200, answer.text
    return answer.json()


def _tried(comparison: Any) -> int:
    return sum(sum(pair["outcomes"].values()) for pair in comparison["shadow"]["beside"])


def _until(ask: Any, condition: Any) -> Any:
    """The first answer for which it is so."""
    deadline = time.monotonic() + 20
    while not condition(found := ask()):
        assert time.monotonic() < deadline, found
    return found
