"""A version's life over a real server: it answers, is compared with what was logged, promoted, and taken back."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from app.registry.aliases import read_aliases
from tests.support.releases import MODULES, write_pair, write_threshold
from tests.support.server import ROOT, TRIED, Server, clean_environment, running_server
from tests.support.tokens import SECRET, token

ROWS = [{"x": x / 10} for x in range(200)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`toy` 1, the champion, 2, which answers alike, and 3, which does not."""
    folder = tmp_path_factory.mktemp("releases") / "models"
    write_pair(folder)
    write_threshold(folder, 3, 3.0)
    return folder


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    """Two workers."""
    environment = {
        "AUTH_MODE": "jwt",
        "JWT_SECRET": SECRET,
        "MODEL_MODULES": ",".join(MODULES),
        "DEFAULT_MODEL": "toy",
        "WORKERS": "2",
        "LOG_FORMAT": "json",
        **TRIED,
    }
    with running_server(root, root.parent / "log", environment, arguments=["--migrate"]) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx2.Client]:
    """An administrator who predicts, too; 200 predictions are in the database, with feedback."""
    with server.client() as client:
        client.headers["authorization"] = f"Bearer {token(sub='root', scope='predict feedback read admin').decode()}"
        results = client.post("/v2/batch", json={"inputs": ROWS}).json()["results"]
        _until_logged(client, len(ROWS))
        truths = [
            {"prediction_id": result["id"], "truth": "big" if row["x"] >= 9.5 else "small"}
            for row, result in zip(ROWS, results, strict=True)
        ]
        assert client.post("/v2/feedback", json={"items": truths}).status_code == 200
        yield client


def _until_logged(client: httpx2.Client, count: int) -> None:
    deadline = time.monotonic() + 20
    while len(client.get("/v2/predictions?model=toy&size=500").json()["predictions"]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _terminal(server: Server, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "MODELS_DIR": str(root),
        "DATABASE_URL": f"sqlite:///{server.log.parent}/presage.db",
        "MODEL_MODULES": ",".join(MODULES),
    }
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_candidate_is_promoted_by_what_was_logged_and_taken_back(
    client: httpx2.Client, server: Server, root: Path
) -> None:
    """All checks speak; the terminal takes back what came over HTTP, and both are on record."""
    refused = client.post("/admin/models/toy/promote", json={"version": 3})
    assert refused.status_code == 409
    failed = [check["check"] for check in refused.json()["evidence"]["checks"] if check["passed"] is False]
    assert failed == ["replay", "accuracy"]
    answer = client.post("/admin/models/toy/promote", json={"version": 2})
    assert answer.status_code == 200, answer.text
    checks = {check["check"]: check for check in answer.json()["evidence"]["checks"]}
    assert {check["passed"] for check in checks.values()} == {True}
    assert checks["replay"]["figures"]["rows"] == len(ROWS)
    assert checks["accuracy"]["figures"]["replayed"]["rows"] == len(ROWS)
    assert read_aliases(root / "toy" / "aliases.json") == {"champion": 2, "previous": 1}
    ended = _terminal(server, root, "models", "rollback", "toy", "--from", "2")
    assert (ended.returncode, ended.stdout) == (0, "toy: 1 is the champion again\n")
    rollback, promotion = client.get("/admin/models/toy/promotions").json()["promotions"]
    assert (promotion["principal"], promotion["champion"]) == ("root", 2)
    assert rollback["principal"].startswith("cli:")
    assert (rollback["champion_before"], rollback["champion"]) == (2, 1)


def test_the_window_is_replayed_at_the_terminal(client: httpx2.Client, server: Server, root: Path) -> None:
    """What 3 would have answered, and how often it would have been right."""
    del client  # whose predictions these are
    ended = _terminal(server, root, "replay", "--from", "2026-01-01", "--model", "toy", "--version", "3")
    assert ended.returncode == 0, ended.stderr
    lines = [" ".join(line.split()) for line in ended.stdout.splitlines()]
    assert "refused 0" in lines
    assert any(line.startswith("small big 6") for line in lines)
    assert any(line.startswith("accuracy on 200 rows with feedback") for line in lines)
