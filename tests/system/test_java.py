"""Java's own HTTP client, which asks for another protocol before it sends a body in this one."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.demo import MODULES
from tests.support.server import Server, running_server

pytestmark = pytest.mark.system

CALLER = Path(__file__).with_name("Caller.java")


@pytest.fixture
def server(models_dir: Path, tmp_path: Path) -> Iterator[Server]:
    """A service that answers everybody."""
    environment = {"AUTH_MODE": "none", "MODEL_MODULES": MODULES, "LOG_FORMAT": "json"}
    with running_server(models_dir, tmp_path / "log", environment) as running:
        yield running


def test_java_is_answered_as_it_is_by_default(server: Server) -> None:
    """Bodies of known and of unknown length arrive, on new connections and on kept ones."""
    command = ["java", str(CALLER), f"{server.url}/predict", '{"text": "I love this product"}']
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ['HTTP_1_1 200 {"sentiment":"positive"}'] * 6
