"""This service beside its peers, in one run.

    python -m benchmarks                  all; half an hour
    python -m benchmarks --quick          one short round of what is installed; two minutes

`README.md` beside this file says what is measured and what is fair.
"""

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from benchmarks.environments import PLACE
from benchmarks.load import require
from benchmarks.plot import plot
from benchmarks.processes import busy_share
from benchmarks.report import report
from benchmarks.servers import PRESAGE, text_systems
from benchmarks.session import MEASURES, Plan, Session
from tests.support.server import ROOT

RESULTS = ROOT / "benchmarks/results"
_QUIET = 0.05
_NAMES = [system.name for system in text_systems()]


@click.command()
@click.option("--quick", is_flag=True, help="One round of 3 s, only of what is installed; results go to var/bench.")
@click.option("--rounds", type=click.IntRange(1, 50), help="Turns that each server takes; 5, or 1 with --quick.")
@click.option("--seconds", type=click.IntRange(1, 120), help="Length of a measurement; 8, or 3 with --quick.")
@click.option("--only", multiple=True, type=click.Choice(_NAMES), help="Only this server; may be repeated.")
@click.option("--measure", "measures", multiple=True, type=click.Choice(MEASURES), help="Only this; may be repeated.")
@click.option(
    "--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="CSV of rating (or label) and text."
)
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), help="Folder of peers.md and peers.svg.")
@click.option("--record", type=click.Path(exists=True, path_type=Path), help="Only write the results of this record.")
def main(
    *,
    quick: bool,
    rounds: int | None,
    seconds: int | None,
    only: tuple[str, ...],
    measures: tuple[str, ...],
    data: Path | None,
    results: Path | None,
    record: Path | None,
) -> None:
    """Measure this service beside its peers, and write a table and a plot."""
    folder = results or (PLACE / "quick" if quick else RESULTS)
    if record is None:
        require("wrk", "taskset")
        if len(os.sched_getaffinity(0) & {0, 1}) < 2:
            raise click.UsageError("two cores are needed, 0 for the server and 1 for the load")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended, as on Ctrl-C
        plan = Plan(
            rounds=rounds or (1 if quick else 5),
            seconds=seconds or (3 if quick else 8),
            data=data,
            only=frozenset(only),
            measures=frozenset(measures or MEASURES),
            install=not quick,
            tails=frozenset({PRESAGE, "mosec"} if quick else ()),
            forests=frozenset({PRESAGE, "mosec"} if quick else ()),
            overload_seconds=5 if quick else 10,
        )
        record = _measure(plan)
    records = [json.loads(line) for line in record.read_text().splitlines()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.md").write_text(report(records))
    (folder / "peers.svg").write_text(plot(records))
    click.echo(f"{folder}/peers.md and peers.svg, from {record}", err=True)


def _measure(plan: Plan) -> Path:
    """Take the rounds; the path of the record, which has a line for each figure as soon as it is known."""
    PLACE.mkdir(parents=True, exist_ok=True)
    path = PLACE / f"{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl"
    started = time.monotonic()

    def say(line: str) -> None:
        click.echo(f"{time.monotonic() - started:6.1f} s  {line}", err=True)

    say(f"each figure is kept in {path}")
    with path.open("w") as output:

        def keep(found: Mapping[str, Any]) -> None:
            output.write(json.dumps(found) + "\n")
            output.flush()

        busy = busy_share()
        if busy > _QUIET:
            say(f"somebody else uses {busy:.0%} of the cores: these figures will say little")
        keep({"kind": "run", "busy": busy, **_circumstances(plan)})
        Session(plan, keep, say).run()
    return path


def _circumstances(plan: Plan) -> Mapping[str, Any]:
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": " ".join(["python -m benchmarks", *_shown(sys.argv[1:])]),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "data": plan.data.name if plan.data else "the project's corpus",
    }


def _shown(arguments: list[str]) -> list[str]:
    """The arguments without folders: where a file lay says nothing to a reader."""
    return [Path(argument).name if "/" in argument else argument for argument in arguments]


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
