"""The image: what the Dockerfile builds, run as strictly as an engine can."""

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import calls
from tests.support.server import free_port
from tests.support.versions import write_classifier
from tests.system.engine import Engine, wait_until

# The first build installs every dependency.
pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

# The image is in production, where a service makes no secret of its own.
SECRET = f"--env=JWT_SECRET={secrets.token_hex(32)}"
STRICT = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
LIMITS = ["--memory=512m", "--pids-limit=128"]

# Prints what has no business in the image.
LIST_SURPLUS = """
import pathlib
KNOWN = {"alembic", "alembic.ini", "app", "model-keys", "models", "var"}
roots = [pathlib.Path(p) for p in ("/app", "/opt/venv", "/root/.cache", "/build")]
found = [p for root in roots if root.exists() for p in root.rglob("*")]
print(*[p for p in found if p.is_dir() and p.name in {"tests", "test-results", ".git", ".venv", "pip"}], sep="\\n")
print(*[p for p in pathlib.Path("/root/.cache").rglob("*") if p.is_file()], sep="\\n")
print(*[p for p in pathlib.Path("/app").iterdir() if p.name not in KNOWN], sep="\\n")
"""

# Prints the modules of the service whose bytecode is not in the image.
LIST_UNCOMPILED = """
import importlib.util, pathlib
sources = pathlib.Path("/app/app").rglob("*.py")
print(*[p for p in sources if not pathlib.Path(importlib.util.cache_from_source(p)).exists()], sep="\\n")
"""


class Container:
    """A running container of the image, and the port under which it is reached."""

    def __init__(self, engine: Engine, image: str, *options: str) -> None:
        self._engine = engine
        self.port = free_port()
        published = f"--publish=127.0.0.1:{self.port}:8000"
        self.id = engine.output("run", "--detach", published, *STRICT, *LIMITS, SECRET, *options, image)

    def wait_for_health(self, wanted: str) -> None:
        """Wait until the engine's own check says so."""
        wait_until(
            lambda: self._engine.health(self.id) == wanted,
            seconds=60,
            what=lambda: f"{self._engine.health(self.id)}\n{self._engine.logs(self.id)}",
        )

    def execute(self, *command: str) -> str:
        """What a command in the container prints, to either stream."""
        done = self._engine.run("exec", self.id, *command, check=False)
        return (done.stdout + done.stderr).strip()


@pytest.fixture(scope="module")
def container(engine: Engine, image: str) -> Iterator[Container]:
    """A healthy container."""
    running = Container(engine, image)
    try:
        running.wait_for_health("healthy")
        yield running
    finally:
        engine.run("rm", "--force", running.id)


def test_a_container_answers_a_prediction(container: Container) -> None:
    """Read-only, without capabilities and with 512 MB, the image becomes healthy and serves its own models."""
    url = f"http://127.0.0.1:{container.port}"

    token = container.execute("python", "-m", "app", "token", "--subject", "tester", "--scope", "predict")
    bearer = {"Authorization": f"Bearer {token}"}
    answer = calls.post(f"{url}/predict", json={"text": "I love this product"}, headers=bearer)

    assert answer.status_code == 200
    assert answer.json() == {"sentiment": "positive"}
    models = calls.get(f"{url}/health/ready").json()["models"]
    assert {model["state"] for model in models} == {"serving"}


def test_a_container_is_in_production(container: Container, engine: Engine) -> None:
    """By default the image closes its docs page, guards its metrics, and writes one JSON object a line."""
    url = f"http://127.0.0.1:{container.port}"

    assert calls.get(f"{url}/docs").status_code == 404
    assert calls.get(f"{url}/metrics").status_code == 401
    assert all(line.startswith("{") for line in engine.logs(container.id).splitlines())


def test_the_models_in_the_image_are_signed_by_a_key_that_nobody_has(container: Container) -> None:
    """Production loads them for that reason; the image has the public half alone."""
    verified = container.execute("python", "-m", "app", "models", "verify")

    assert len(verified.splitlines()) == 6
    assert all(line.split()[3:] == ["good", "image", "ok"] for line in verified.splitlines()[1:])
    assert container.execute("ls", "/app/model-keys") == "image.pub"
    assert container.execute("find", "/app", "/opt", "-name", "*.key") == ""


def test_models_that_nobody_signed_are_not_served(engine: Engine, image: str, tmp_path: Path) -> None:
    """Mounted over the image's own, they are refused by name until somebody vouches for them, or says not to ask."""
    write_classifier(tmp_path)
    tmp_path.chmod(0o755)
    own = [f"--volume={tmp_path}:/app/models:ro", "--env=MODEL_LIBRARIES=proven"]  # the image has a Python of its own
    verify = ["python", "-m", "app", "models", "verify"]

    refused = engine.run("run", "--rm", *STRICT, *own, image, *verify, check=False)
    assert refused.returncode == 1
    assert "unsigned" in refused.stdout
    assert engine.run("run", "--rm", *STRICT, *own, "--env=MODEL_SIGNATURES=off", image, *verify).returncode == 0


def test_a_container_without_a_secret_does_not_start(engine: Engine, image: str) -> None:
    """It ends with exit code 1 and a line that names what is missing."""
    done = engine.run("run", "--rm", *STRICT, image, check=False)

    assert done.returncode == 1
    assert "JWT_SECRET: is required in production" in done.stderr


def test_a_container_can_change_nothing(container: Container) -> None:
    """The service runs as an ordinary user, who owns nothing of what it runs."""
    assert container.execute("id", "-u") == "10001"
    assert "Read-only file system" in container.execute("touch", "/app/models/mine")
    assert container.execute("find", "/app/app", "/app/models", "/opt/venv", "-user", "10001") == ""
    assert container.execute("sh", "-c", "touch /tmp/mine && echo written") == "written"


def test_var_is_writable_once_a_volume_is_mounted(engine: Engine, image: str) -> None:
    """A named volume on /app/var belongs to the service's user, without anybody's chown."""
    volume = engine.output("volume", "create")
    try:
        command = ["sh", "-c", "touch /app/var/mine && echo written"]
        assert engine.output("run", "--rm", *STRICT, f"--volume={volume}:/app/var", image, *command) == "written"
    finally:
        engine.run("volume", "rm", volume)


def test_var_is_writable_without_a_volume_too(container: Container, engine: Engine) -> None:
    """The image declares one, so a container that was started without any has its own database and journal."""
    events = [json.loads(line)["event"] for line in engine.logs(container.id).splitlines()]

    assert "database_migrated" in events
    assert "presage.db" in container.execute("ls", "/app/var")


def test_the_image_holds_nothing_that_it_does_not_need(engine: Engine, image: str) -> None:
    """No tests, no pip and none of its downloads; every module of the service is there as bytecode."""
    as_root = ["run", "--rm", "--user=0", image, "python", "-c"]

    assert engine.output(*as_root, LIST_SURPLUS) == ""
    assert engine.output(*as_root, LIST_UNCOMPILED) == ""


def test_the_commands_work_in_the_image(engine: Engine, image: str) -> None:
    """An operator can ask a container which models it brings along."""
    listed = engine.output("run", "--rm", *STRICT, image, "python", "-m", "app", "models")

    assert all(name in listed for name in ("sentiment", "iris", "breast-cancer", "diabetes"))


def test_a_container_without_its_required_model_is_unhealthy(engine: Engine, image: str) -> None:
    """Health follows readiness: a process that only lives is not healthy."""
    quick = ["--health-start-period=1s", "--health-interval=1s", "--health-retries=3"]
    running = Container(engine, image, "--env=REQUIRED_MODELS=absent", *quick)
    try:
        running.wait_for_health("unhealthy")
        assert calls.get(f"http://127.0.0.1:{running.port}/health/live").status_code == 200
    finally:
        engine.run("rm", "--force", running.id)


def test_a_container_stops_when_it_is_told_to(container: Container, engine: Engine) -> None:
    """SIGTERM ends it within seconds and with exit code 0; the engine has no need to kill."""
    started = time.monotonic()

    engine.run("stop", "--time=30", container.id)

    assert time.monotonic() - started < 5
    assert engine.inspect(container.id)["State"]["ExitCode"] == 0
