"""The compose file: the service comes up with its PostgreSQL and its Redis, each after what it needs."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import calls
from tests.support.server import ROOT, free_port
from tests.system.engine import Engine

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

FILE = ROOT / "docker-compose.yml"


@dataclass
class Project:
    """The compose file under a name of its own; what it builds uses the host's network, which may be the only one."""

    engine: Engine
    override: Path
    port: int = field(default_factory=free_port)
    name: str = f"presage-test-{os.getpid()}"

    def run(self, *arguments: str) -> str:
        """`docker compose …`; what it prints."""
        which = [f"--project-name={self.name}", f"--file={FILE}", f"--file={self.override}"]
        done = self.engine.run("compose", *which, *arguments, PORT=str(self.port))
        return done.stdout.strip()

    def inspect(self, service: str) -> dict[str, Any]:
        """All that the engine knows about the container of a service."""
        return self.engine.inspect(self.run("ps", "--quiet", service))

    def left(self) -> list[str]:
        """What of this project is still there: containers, volumes, networks."""
        label = f"--filter=label=com.docker.compose.project={self.name}"
        listed = [["ps", "--all", "--quiet"], ["volume", "ls", "--quiet"], ["network", "ls", "--quiet"]]
        return [line for command in listed for line in self.engine.output(*command, label).splitlines()]


@pytest.fixture(scope="module")
def project(engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The service with what it needs, up and healthy."""
    override = tmp_path_factory.mktemp("compose") / "override.yml"
    override.write_text(yaml.safe_dump({"services": {"presage": {"build": {"network": "host"}}}}))
    running = Project(engine, override)
    try:
        running.run("up", "--build", "--wait", "--wait-timeout=120", "presage")
        yield running
    finally:
        running.run("down", "--volumes", "--timeout=10")


@pytest.fixture(scope="module")
def resolved(engine: Engine) -> dict[str, Any]:
    """The compose file as compose itself reads it, without anything in the environment."""
    text = engine.output("compose", "--file", FILE, "config", "--format=json")
    document: dict[str, Any] = json.loads(text)
    return document


def test_the_file_is_valid_and_publishes_on_the_loopback_alone(resolved: dict[str, Any]) -> None:
    """Without a word in the environment, nothing is reachable from another machine, and each image is pinned."""
    services = resolved["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    images = [service["image"] for service in services.values() if "build" not in service]

    assert set(services) == {"presage", "postgres", "redis", "prometheus", "grafana"}
    assert len(ports) == 3
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    assert all(image.rpartition(":")[2].lstrip("v")[0].isdigit() for image in images)


def test_every_service_waits_until_what_it_needs_is_healthy(resolved: dict[str, Any]) -> None:
    """No service is started after another has merely begun to start."""
    needs = {
        name: {needed: how["condition"] for needed, how in service.get("depends_on", {}).items()}
        for name, service in resolved["services"].items()
    }

    assert needs == {
        "postgres": {},
        "redis": {},
        "presage": {"postgres": "service_healthy", "redis": "service_healthy"},
        "prometheus": {"presage": "service_healthy"},
        "grafana": {"prometheus": "service_healthy"},
    }


def test_the_service_comes_up_and_answers(project: Project) -> None:
    """`docker compose up --wait presage` ends with a service that predicts."""
    command = ["python", "-m", "app", "token", "--subject", "tester", "--scope", "predict"]
    bearer = {"Authorization": f"Bearer {project.run('exec', '-T', 'presage', *command)}"}
    url = f"http://127.0.0.1:{project.port}"

    answer = calls.post(f"{url}/predict", json={"text": "I love this product"}, headers=bearer)

    assert answer.json() == {"sentiment": "positive"}
    assert project.inspect("presage")["State"]["Health"]["Status"] == "healthy"
    assert calls.get(f"{url}/health/ready").json()["access"] == {"clients": "current", "limits": "up"}


@pytest.mark.parametrize("needed", ["postgres", "redis"])
def test_the_service_started_after_what_it_needs_was_healthy(project: Project, needed: str) -> None:
    """The engine's own record: whoever is needed became healthy before the service started."""
    found = project.inspect(needed)
    about = [f"--filter=container={found['Id']}", "--filter=event=health_status"]
    # A container's own log has the last five checks only.
    span = [f"--since={found['Created']}", f"--until={datetime.now(UTC).isoformat()}"]
    events = [json.loads(line) for line in project.engine.output("events", *span, *about, "--format=json").splitlines()]
    healthy = min(event["timeNano"] for event in events if event["Action"].endswith(": healthy")) / 1e9

    assert healthy <= _moment(project.inspect("presage")["State"]["StartedAt"]).timestamp()


def test_the_service_is_as_restricted_as_the_file_says(project: Project) -> None:
    """Read-only, without capabilities or a way to gain any, and with bounded memory."""
    host = project.inspect("presage")["HostConfig"]

    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] == 1 << 30


def test_the_addresses_of_the_service_lead_to_its_database_and_its_redis(project: Project) -> None:
    """What the service is told opens the database and the Redis of this project, passwords included."""
    database = project.run("exec", "-T", "presage", "printenv", "DATABASE_URL")
    redis = project.run("exec", "-T", "presage", "printenv", "REDIS_URL")

    assert project.run("exec", "-T", "postgres", "psql", database, "-qtAc", "select current_user") == "presage"
    assert project.run("exec", "-T", "redis", "redis-cli", "--no-auth-warning", "-u", redis, "ping") == "PONG"


def test_down_leaves_nothing_behind(project: Project) -> None:
    """`docker compose down --volumes` removes containers, volumes and networks, without killing anything."""
    service = project.run("ps", "--quiet", "presage")
    assert project.left()

    project.run("stop", "presage")
    assert project.engine.inspect(service)["State"]["ExitCode"] == 0
    project.run("down", "--volumes", "--timeout=10")

    assert project.left() == []


def _moment(text: str) -> datetime:
    """An engine's timestamp, which has nanoseconds and either a Z or an offset."""
    return datetime.fromisoformat(text)
