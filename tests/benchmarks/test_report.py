"""The table and the picture of a run, from its record."""

import xml.etree.ElementTree as ET
from typing import Any

from benchmarks.plot import plot
from benchmarks.report import Figures, report

RUN = {"kind": "run", "command": "python -m benchmarks", "rounds": 2, "seconds": 8, "date": "2026-01-01"}
RUN |= {"cpu": "A <processor>", "python": "3.11.7", "data": "the project's corpus", "busy": 0.01}


def single(turn: int, server: str, rate: float) -> dict[str, Any]:
    """A figure."""
    found = {"kind": "figures", "round": turn, "server": server, "measure": "single"}
    return {**found, "rate": rate, "p50": 1.0, "p99": 2.0}


RECORDS = [RUN, single(0, "presage", 300), single(0, "mosec", 100), single(1, "mosec", 400), single(1, "presage", 400)]


def test_a_ratio_is_taken_within_a_round() -> None:
    """A machine that is four times as fast in the second round changes no ratio of that round."""
    rate = "single", "presage", "rate"
    assert Figures(RECORDS).ratios(rate, ("single", "mosec", "rate")) == [3.0, 1.0]
    assert "| mosec | 250 | 100 to 400 | 2.00 | 1.00 to 3.00 | 1.00 | 2.00 |" in report(RECORDS)


def test_a_server_that_failed_is_a_line() -> None:
    """A failure is told once with its reason, and a run that ended before the other measures makes a page."""
    failed = {"kind": "figures", "round": 0, "server": "mlflow", "measure": "failed", "reason": "no such version"}
    page = report([*RECORDS, failed, {**failed, "round": 1}])
    assert page.count("- MLflow: no such version") == 1
    assert "## Memory" not in page


def test_the_picture_is_well_formed_and_names_every_server() -> None:
    """The SVG can be parsed, whatever the processor is called, and has each server with its median."""
    texts = [element.text for element in ET.fromstring(plot(RECORDS)).iter()]  # noqa: S314 -- our own SVG
    assert {"Presage", "mosec", "350", "250"} <= set(texts)
