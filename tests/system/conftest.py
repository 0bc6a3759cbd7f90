"""What the system tests share: the real server as a process, a container engine, the image."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.registry.aliases import ALIASES_FILE, write_aliases
from tests.support.server import ROOT, Server, clean_environment, running_server
from tests.system.engine import Engine, running_engine
from tests.system.stand_ins import provide_images

IMAGE = "presage:system-test"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo models, made anew: what a developer has in models/ is none of the tests' business.

    The first version of sentiment is also the shadow of the second, so that there is something to compare.
    """
    folder = tmp_path_factory.mktemp("models")
    command = [sys.executable, "-m", "app", "train"]
    subprocess.run(command, cwd=ROOT, env=clean_environment(MODELS_DIR=str(folder)), check=True)
    write_aliases(folder / "sentiment" / ALIASES_FILE, {"champion": 2, "v1": 1, "shadow": 1})
    return folder


@pytest.fixture(scope="session")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of this checkout, as `make run` starts it."""
    log = tmp_path_factory.mktemp("server") / "log"
    with running_server(models, log, {"ENVIRONMENT": "development", "LOG_FORMAT": "json"}) as running:
        yield running


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A container engine that has the images which the Dockerfile and the compose file ask for."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a container engine")
    with running_engine() as running:
        provide_images(running)
        yield running


@pytest.fixture(scope="session")
def image(engine: Engine) -> str:
    """The image, built from the Dockerfile as it stands; on the host's network, which may be the only one."""
    engine.run("build", "--network", "host", "--tag", IMAGE, ROOT)
    return IMAGE
