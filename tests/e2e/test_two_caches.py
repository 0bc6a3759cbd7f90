"""Two servers with one Redis: what the model of one has answered, the other finds, but for private models."""

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from app.manifest import Golden, GoldenRow
from tests.support import calls
from tests.support.server import Server, running_server
from tests.support.tokens import SECRET, token
from tests.support.valkey import Valkey, running_valkey
from tests.support.versions import LABELS, write_version

_ROWS = count(1)


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    """What they share their answers through."""
    with running_valkey() as started:
        yield started


@pytest.fixture(scope="module")
def servers(valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Both, with a forest that everybody may have the answers of, and one that is private."""
    folder = tmp_path_factory.mktemp("two")
    _write_forest(folder / "models", "common")
    _write_forest(folder / "models", "personal")
    (folder / "models/personal/cache.json").write_text('{"cache": "private"}')
    environment = {
        "AUTH_MODE": "jwt",
        "JWT_SECRET": SECRET,
        "DEFAULT_MODEL": "common",
        "CACHE": "redis",
        "COMPILE": "off",  # else a forest answers in the time of a look-up
        "REDIS_URL": valkey.url,
        "DATABASE_URL": f"sqlite:///{folder}/presage.db",
        "LOG_FORMAT": "json",
    }
    models = folder / "models"
    with (
        running_server(models, folder / "one/log", environment, arguments=["--migrate"]) as one,
        running_server(models, folder / "two/log", environment) as two,
    ):
        for server in (one, two):
            _wait_for_cache(server, "up")
        yield [one, two]


def _write_forest(root: Path, name: str) -> None:
    """Milliseconds a row, so that it is worth while to ask Redis."""
    numbers = np.arange(200.0).reshape(-1, 1)
    forest = RandomForestClassifier(100, random_state=1).fit(numbers, numbers[:, 0] >= 100)
    small, big = forest.predict_proba([[1.0]])[0].tolist()
    golden = Golden(
        rows=(GoldenRow(inputs={"x": 1.0}, prediction="small", probabilities={"small": small, "big": big}),)
    )
    write_version(root, forest, name=name, outputs=LABELS.model_copy(update={"probabilities": True}), golden=golden)


def test_what_one_has_computed_the_other_finds(servers: list[Server]) -> None:
    """With the same answer, on record as one that was not computed; at last, since Redis has 5 ms to tell."""

    def found() -> bool:
        row = next(_ROWS)
        first = _predict(servers[0], "common", row, "alice")
        second = _predict(servers[1], "common", row, "bob")
        assert first["prediction"] == second["prediction"]
        assert first["probabilities"] == second["probabilities"]
        logged = [_logged(server, answer["id"]) for server, answer in zip(servers, (first, second), strict=True)]
        assert logged[0]["cached"] is False
        assert logged[1]["cached"] is (_hits(servers[1], "common") == 1)
        return bool(logged[1]["cached"])

    _until(found)


def test_a_private_model_never_answers_one_with_what_another_asked(servers: list[Server]) -> None:
    """On either server; the one who asked finds it on both."""

    def found() -> bool:
        row = next(_ROWS)
        _predict(servers[0], "personal", row, "alice")
        before = [_hits(server, "personal") for server in servers]
        for server in servers:
            _predict(server, "personal", row, f"bob-{server.port}")
        assert [_hits(server, "personal") for server in servers] == before
        _predict(servers[1], "personal", row, "alice")
        return _hits(servers[1], "personal") > before[1]

    _until(found)


def test_without_redis_both_answer_and_say_so_until_it_is_back(servers: list[Server], valkey: Valkey) -> None:
    """In the ready body, which stays ready, and in a metric; and it heals by itself."""
    valkey.kill()
    for server in servers:
        _wait_for_cache(server, "down")
        assert _predict(server, "common", next(_ROWS), "alice")["version"] == 1
        assert "presage_cache_redis_up 0.0" in calls.get(f"{server.url}/metrics").text
    valkey.start()
    for server in servers:
        _wait_for_cache(server, "up")


def _predict(server: Server, model: str, row: int, who: str) -> Any:
    bearer = {"Authorization": f"Bearer {token(sub=who).decode()}"}
    answer = calls.post(f"{server.url}/v2/predict/{model}", json={"inputs": {"x": row}}, headers=bearer)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _hits(server: Server, model: str) -> int:
    """Rows found in memory or in Redis."""
    lines = calls.get(f"{server.url}/metrics").text.splitlines()
    counts = [line for line in lines if line.startswith("presage_cache_rows_total") and f'model="{model}"' in line]
    return int(sum(float(line.split()[-1]) for line in counts if 'outcome="hit_' in line))


def _logged(server: Server, identifier: str) -> Any:
    bearer = {"Authorization": f"Bearer {token(sub='reader', scope='read').decode()}"}
    deadline = time.monotonic() + 20
    while (answer := calls.get(f"{server.url}/v2/predictions/{identifier}", headers=bearer)).status_code != 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.02)
    return answer.json()


def _wait_for_cache(server: Server, state: str) -> None:
    _until(lambda: calls.get(f"{server.url}/health/ready").json()["cache"] == state)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
