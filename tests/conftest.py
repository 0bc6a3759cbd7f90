"""Fixtures for everybody: the models, an application in this process, a server in another."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.config import ModelSettings, Settings, StorageSettings
from app.storage.migrations import upgrade
from tests.support.asgi import OPEN, UNLIMITED, InProcess, in_process
from tests.support.demo import MODULES, publish_demo_models
from tests.support.server import ROOT, Server, clean_environment, running_server

# In this process versions are loaded at once, unless a test is about trials.
os.environ["MODEL_TRIALS"] = "off"


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small models, published once; tests leave it as it is."""
    root = tmp_path_factory.mktemp("demo") / "models"
    publish_demo_models(root)
    return root


@pytest.fixture(scope="session")
def app(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """The application in this process, with all models loaded and a database that is migrated."""
    folder = tmp_path_factory.mktemp("app")
    url = SecretStr(f"sqlite:///{folder}/presage.db")
    storage = StorageSettings(database_url=url, journal_dir=folder / "journal")
    upgrade(storage)
    models = ModelSettings(models_dir=models_dir, model_modules=(MODULES,))
    with in_process(Settings(auth=OPEN, limits=UNLIMITED, models=models, storage=storage)) as started:
        yield started


@pytest.fixture(scope="session")
def server(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real server as a process, ready."""
    log = tmp_path_factory.mktemp("server") / "log"
    upgrade(StorageSettings(database_url=SecretStr(f"sqlite:///{log.parent}/presage.db")))
    with running_server(models_dir, log, {"MODEL_MODULES": MODULES, "LOG_FORMAT": "json"}) as started:
        yield started


@pytest.fixture(scope="session")
def demo_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo models as `python -m app train` makes them; takes seconds, so tests share them and leave them be."""
    root = tmp_path_factory.mktemp("trained") / "models"
    command = [sys.executable, "-m", "app", "train"]
    environment = clean_environment(MODELS_DIR=str(root))
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=110)
    return root
