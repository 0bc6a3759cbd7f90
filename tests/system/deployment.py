"""What the tests read from deploy/: the dashboard's queries and Prometheus's settings."""

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.support.server import ROOT

PROMETHEUS = ROOT / "deploy/prometheus/prometheus.yml"
GRAFANA = ROOT / "deploy/grafana"
_NAME = re.compile(r"\b(?:http|presage|process|python)_\w+")


def dashboard() -> dict[str, Any]:
    """The dashboard's document."""
    document: dict[str, Any] = json.loads((GRAFANA / "dashboards/presage.json").read_text())
    return document


def queries() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard, as (panel, PromQL), with its variables as Grafana would fill them in."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*")


def metric_names(promql: str) -> set[str]:
    """The names of series that a query asks for."""
    return set(_NAME.findall(promql))
