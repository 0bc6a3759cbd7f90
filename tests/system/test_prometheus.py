"""A real Prometheus scrapes the real server, and can answer every query of the dashboard."""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from app.telemetry.metrics import Metrics
from tests.support import calls
from tests.support.server import Server, free_port
from tests.system.deployment import PROMETHEUS, metric_names, queries
from tests.system.traffic import send_traffic

pytestmark = pytest.mark.system

QUERIES = list(queries())


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def query(self, promql: str) -> list[dict[str, Any]]:
        """The series that an instant query finds now."""
        answer = calls.get(f"{self.url}/api/v1/query", params={"query": promql}).json()
        assert answer["status"] == "success", answer
        series: list[dict[str, Any]] = answer["data"]["result"]
        return series

    def wait_for(self, promql: str, *, seconds: float = 30) -> list[dict[str, Any]]:
        """The first series that a query finds."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if series := self.query(promql):
                    return series
            except httpx2.TransportError:
                pass  # it is still opening its store
            assert time.monotonic() < deadline, f"no series for {promql}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def prometheus(server: Server, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus with the project's own settings, except for the server's address and a shorter interval.

    It has seen some traffic happen: rates need a scrape before it and two after it.
    """
    folder = tmp_path_factory.mktemp("prometheus")
    settings = yaml.safe_load(PROMETHEUS.read_text())
    settings["global"] |= {"scrape_interval": "500ms", "scrape_timeout": "500ms"}
    settings["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{server.port}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    port = free_port()
    options = {"config.file": folder / "prometheus.yml", "storage.tsdb.path": folder / "data"}
    command = ["prometheus", f"--web.listen-address=127.0.0.1:{port}", *(f"--{k}={v}" for k, v in options.items())]
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    running = Prometheus(f"http://127.0.0.1:{port}")
    try:
        running.wait_for("up == 1")
        with server.client() as client:
            send_traffic(client, models)
            running.wait_for("sum(presage_predictions_total)")
            send_traffic(client, models)
        running.wait_for("sum(increase(presage_predictions_total[1m])) > 0")
        yield running
    finally:
        process.terminate()
        process.wait(30)


def test_the_server_is_up(prometheus: Prometheus) -> None:
    """The one job of the settings finds the server."""
    (series,) = prometheus.query("up")

    assert series["metric"]["job"] == "presage"
    assert series["value"][1] == "1"


def test_every_instrument_arrives(prometheus: Prometheus) -> None:
    """Each that the service declares has series, but for those of a cache that is off, and of what does not happen."""
    declared = {family.name for family in Metrics().registry.collect()} - {"presage_shadow_flips"}
    missing = [name for name in sorted(declared) if not prometheus.query(f'{{__name__=~"{name}(_total|_count)?"}}')]

    assert "presage_model_duration_seconds" in declared
    assert missing == ["presage_cache_invalid", "presage_cache_rows", "presage_traffic_stopped"]


@pytest.mark.parametrize(("panel", "promql"), QUERIES, ids=[panel for panel, _ in QUERIES])
def test_every_query_of_the_dashboard_finds_something(prometheus: Prometheus, panel: str, promql: str) -> None:
    """No panel stays empty for want of a metric or a label."""
    assert prometheus.wait_for(promql)


def test_labels_are_bounded_by_what_is_loaded(prometheus: Prometheus, models: Path) -> None:
    """What callers ask for never becomes a label: not a model that does not exist, nor a path."""
    series = prometheus.query('{__name__=~"presage_.+|http_.+"}')
    values = {value for one in series for name, value in one["metric"].items() if name in {"model", "handler"}}

    assert not any("absent" in value for value in values)
    assert {folder.name for folder in models.iterdir() if folder.is_dir()} <= values


def test_the_settings_pass_promtool() -> None:
    """Prometheus's own tool finds nothing wrong with the settings."""
    done = subprocess.run(["promtool", "check", "config", PROMETHEUS], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_exposition_passes_promtool(prometheus: Prometheus, server: Server) -> None:
    """Names, help texts and units are as Prometheus's own tool wants them."""
    text = calls.get(f"{server.url}/metrics").text
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_dashboard_asks_for_metrics_that_exist(prometheus: Prometheus, server: Server) -> None:
    """Every name in a query is one that the exposition shows."""
    text = calls.get(f"{server.url}/metrics").text
    shown = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    asked = set().union(*(metric_names(promql) for _, promql in QUERIES))

    assert len(asked) > 10
    assert asked <= shown
