"""The files in deploy/ fit each other and the compose file."""

from typing import Any

import pytest
import yaml

from tests.support.server import ROOT
from tests.system.deployment import GRAFANA, PROMETHEUS, dashboard

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services of the compose file."""
    document: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return document["services"]


def test_the_dashboard_asks_the_datasource_that_is_provisioned() -> None:
    """Every panel and variable names the datasource by the identifier under which it is provisioned."""
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    document = dashboard()
    asking = [*document["templating"]["list"], *(panel for panel in document["panels"] if panel["type"] != "row")]

    assert {one["datasource"]["uid"] for one in asking} == {source["uid"]}


def test_panels_have_titles_descriptions_and_do_not_overlap() -> None:
    """Whoever reads a panel learns what it shows; no two panels cover the same place."""
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert all(panel["title"] and panel["description"] for panel in panels)
    assert len(cells) == len(set(cells))


def test_grafana_finds_its_dashboards_and_prometheus_its_settings(services: dict[str, Any]) -> None:
    """What the files name as paths and addresses is what the compose file mounts and calls services."""
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/presage.yml").read_text())["providers"]
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (job,) = yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    folder = provider["options"]["path"]

    assert f"./deploy/grafana/dashboards:{folder}:ro" in services["grafana"]["volumes"]
    assert home == f"{folder}/presage.json"
    assert "./deploy/prometheus:/etc/prometheus:ro" in services["prometheus"]["volumes"]
    assert source["url"] == "http://prometheus:9090"
    assert job["static_configs"] == [{"targets": ["presage:8000"]}]
