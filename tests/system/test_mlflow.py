"""A model that is promoted in MLflow is taken by the service, with nobody at a terminal."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.registry.sources import DirectorySource
from app.release.notes import FOLDER
from tests.support.mlflow_server import MlflowServer, running_mlflow
from tests.support.server import ROOT, Server, clean_environment, running_server

pytestmark = pytest.mark.system

SETOSA = {"sepal length (cm)": 5.1, "sepal width (cm)": 3.5, "petal length (cm)": 1.4, "petal width (cm)": 0.2}
COMMAND = [sys.executable, "-m", "app", "models", "publish", "models:/flowers@champion", "--name", "iris"]


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server with one model, `flowers`, whose version 1 is the champion."""
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as server:
        server.promote("flowers", "champion", 1.0)
        yield server


@pytest.mark.timeout(400)  # the first time, MLflow is installed
def test_what_is_promoted_there_is_answered_here(mlflow: MlflowServer, tmp_path: Path) -> None:
    """By hand once; then by a process that stays, through an outage of MLflow, until it is told to end."""
    models = tmp_path / "models"
    environment = clean_environment(
        MODELS_DIR=str(models), MLFLOW_TRACKING_URI=mlflow.url, DATABASE_URL=f"sqlite:///{tmp_path}/server/presage.db"
    )
    once = subprocess.run(COMMAND, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert once.returncode == 0, once.stderr
    assert "iris 1: published" in once.stdout
    manifest = DirectorySource(models).manifest("iris", 1)
    assert manifest.origin.recipe.startswith(f"models:/flowers/1 at {mlflow.url}, run ")
    with running_server(models, tmp_path / "server/log", {"DEFAULT_MODEL": "iris"}) as server:
        assert _version_that_answers(server) == 1
        with _follower(environment, tmp_path / "follower.log") as (follower, log):
            _wait_for(log, r"^iris 1 is models:/flowers/1$")
            mlflow.stop()
            _wait_for(log, r"cannot be reached$")
            mlflow.start()
            mlflow.promote("flowers", "champion", 0.1)
            _wait_for(log, r"^iris 2 is models:/flowers/2$")
            deadline = time.monotonic() + 20
            while _version_that_answers(server) != 2:
                assert time.monotonic() < deadline, server.output()
                time.sleep(0.05)
            follower.send_signal(signal.SIGTERM)
            assert follower.wait(15) == 0, log.read_text()
    said = log.read_text()
    assert said.count("cannot be reached") == 1, said
    assert DirectorySource(models).aliases("iris") == {"champion": 2, "previous": 1}
    assert not [entry for entry in (models / "iris").iterdir() if entry.name.startswith(".") and entry.name != FOLDER]


def _version_that_answers(server: Server) -> int:
    with server.client() as client:
        answer = client.post("/v2/predict/iris", json={"inputs": SETOSA}).json()
    assert answer["prediction"] == "setosa", answer
    version: int = answer["version"]
    return version


@contextmanager
def _follower(environment: Mapping[str, str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, "--alias", "champion", "--follow", "1"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()


def _wait_for(log: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not re.search(pattern, log.read_text(), re.MULTILINE):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
