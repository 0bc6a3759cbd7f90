"""Two servers of one service: what one of them lets through, or no longer does, the other knows."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support import calls
from tests.support.server import Server, running_server
from tests.support.tokens import SECRET, token
from tests.support.valkey import Valkey, running_valkey

LIMIT = 20


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    """What they share their counts through."""
    with running_valkey() as started:
        yield started


@pytest.fixture(scope="module")
def servers(valkey: Valkey, models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Both, with one database and one Redis."""
    folder = tmp_path_factory.mktemp("two")
    environment = {
        "AUTH_MODE": "jwt",
        "JWT_SECRET": SECRET,
        "RATE_LIMIT": f"{LIMIT}/hour",
        "REDIS_URL": valkey.url,
        "DATABASE_URL": f"sqlite:///{folder}/presage.db",
        "MODEL_MODULES": "tests.support.estimators",
        "LOG_FORMAT": "json",
    }
    with (
        running_server(models_dir, folder / "one/log", environment, arguments=["--migrate"]) as one,
        running_server(models_dir, folder / "two/log", environment) as two,
    ):
        for server in (one, two):
            _wait_for_access(server, limits="up", clients="current")
        yield [one, two]


def test_a_plan_holds_over_both(servers: list[Server]) -> None:
    """In turns, each request on a connection of its own: as many pass as the plan has, give or take one."""
    statuses = [_predict(servers[turn % 2], token(sub="shared")).status_code for turn in range(2 * LIMIT)]
    assert set(statuses) == {200, 429}
    assert abs(statuses.count(200) - LIMIT) <= 1


def test_a_batch_on_one_is_known_to_the_other(servers: list[Server]) -> None:
    """Its price in rows leaves so much less there."""
    bearer = {"Authorization": f"Bearer {token(sub='batches').decode()}"}
    texts = {"texts": ["fine"] * (LIMIT - 3)}
    assert calls.post(f"{servers[0].url}/v1/batch", json=texts, headers=bearer).status_code == 200
    deadline = time.monotonic() + 10
    while (usage := calls.get(f"{servers[1].url}/v2/usage", headers=bearer).json()["usage"]) == [] or (
        usage[-1]["name"],
        usage[-1]["used"],
    ) != ("sentiment", LIMIT - 3):
        assert time.monotonic() < deadline, usage
        time.sleep(0.02)


def test_a_token_revoked_on_one_is_refused_by_the_other_within_a_second(servers: list[Server]) -> None:
    """It was remembered there, and good a moment before."""
    given = token(sub="leaver", jti="the-leavers-token")
    assert _predict(servers[1], given).status_code == 200
    admin = {"Authorization": f"Bearer {token(sub='root', scope='admin').decode()}"}
    revoked = calls.post(f"{servers[0].url}/admin/revocations", json={"token": given.decode()}, headers=admin)
    started = asked = time.monotonic()
    assert revoked.status_code == 204
    assert _predict(servers[0], given).status_code == 401
    while _predict(servers[1], given).status_code != 401:
        asked = time.monotonic()
        assert asked - started < 10
    assert asked - started < 1


def test_without_redis_both_serve_and_say_so_until_it_is_back(servers: list[Server], valkey: Valkey) -> None:
    """In the ready body and in a metric; nobody has to do anything for it to heal."""
    valkey.kill()
    for server in servers:
        _wait_for_access(server, limits="down", clients="current")
        assert _predict(server, token(sub="meanwhile")).status_code == 200
        assert "presage_limits_redis_up 0.0" in calls.get(f"{server.url}/metrics").text
    valkey.start()
    for server in servers:
        _wait_for_access(server, limits="up", clients="current")


def _predict(server: Server, given: bytes) -> httpx2.Response:
    bearer = {"Authorization": f"Bearer {given.decode()}"}
    return calls.post(f"{server.url}/predict", json={"text": "fine"}, headers=bearer)


def _wait_for_access(server: Server, **wanted: str) -> None:
    deadline = time.monotonic() + 20
    while (found := calls.get(f"{server.url}/health/ready").json()["access"]) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
