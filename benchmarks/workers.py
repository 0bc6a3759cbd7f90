"""What workers cost and bring: CPU time a request, requests a second on both cores, and memory with a large model.

    python -m benchmarks.workers [--seconds 5] [--rounds 3]

Nothing is pinned: server and load generator (wrk) share the machine's cores, so throughput is that of a machine which
also makes the load. Results go to `benchmarks/results/workers.md`.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
from sklearn.ensemble import RandomForestClassifier

from app.training.options import Options
from app.training.publish import publish
from benchmarks.load import require, write_script, wrk
from benchmarks.processes import pss_bytes
from tests.support.server import ROOT, Server, running_server
from tests.support.tokens import SECRET, token
from tests.support.versions import write_classifier

RESULTS = ROOT / "benchmarks/results/workers.md"
CONNECTIONS = 64  # for each worker
_FOREST_MIB = 190
_SAMPLES, _FIELDS = 40_000, 10
_HEADERS = {"Authorization": f"Bearer {token(exp=4_000_000_000).decode()}"}


@click.command()
@click.option("--seconds", default=5, show_default=True, help="Length of one measurement.")
@click.option("--rounds", default=3, show_default=True, help="Turns that each number of workers takes.")
def main(seconds: int, rounds: int) -> None:
    """Measure, print, and write the table."""
    require("wrk")
    with tempfile.TemporaryDirectory(prefix="presage-bench-") as name:
        folder = Path(name)
        write_classifier(folder / "small")
        lines = [*_throughput(folder, seconds, rounds), "", *_memory(folder)]
    page = "\n".join([_head(seconds), *lines, ""])
    click.echo(page)
    RESULTS.write_text(page)


def _head(seconds: int) -> str:
    command = f"`python -m benchmarks.workers`, Python {sys.version.split()[0]}, {os.cpu_count()} cores"
    return (
        f"# Workers\n\n{command}, {datetime.now(UTC):%Y-%m-%d}. A row for a linear model with everything on; wrk with "
        f"{CONNECTIONS} connections for each worker on the same cores, {seconds} s.\n"
    )


def _throughput(folder: Path, seconds: int, rounds: int) -> list[str]:
    script = write_script(folder / "post.lua", [f'{{"inputs": {{"x": {n}}}}}' for n in range(1, 20)], _HEADERS)
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for turn in range(rounds):
        for workers, measured in found.items():
            place = folder / f"{workers}-{turn}"
            with running_server(folder / "small", place / "log", _settings("toy", workers)) as server:
                url = f"{server.url}/v2/predict"
                wrk(url, script, 1, connections=CONNECTIONS * workers, core=None)
                before = {pid: cpu_seconds(pid) for pid in family(server)}
                result = wrk(url, script, seconds, connections=CONNECTIONS * workers, core=None)
                spent = [cpu_seconds(pid) - seconds_before for pid, seconds_before in before.items()]
                requests = result["rate"] * seconds
                measured.append({**result, "cpu": sum(spent) / requests * 1e6, "least": _least_share(spent, workers)})
            click.echo(f"  {workers}: {measured[-1]}", err=True)
    heads = ["workers", "requests/s, median", "least to most", "µs of CPU a request", "÷ one worker"]
    heads += ["p50 ms", "p99 ms", "least busy worker's share"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    ratios = [two["cpu"] / one["cpu"] for one, two in zip(found[1], found[2], strict=True)]
    for workers, measured in found.items():
        rates = [each["rate"] for each in measured]
        ratio = statistics.median(ratios) if workers > 1 else 1.0
        cells = [str(workers), f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}"]
        cells += [f"{_median(measured, 'cpu'):.1f}", f"{ratio:.2f}", f"{_median(measured, 'p50'):.2f}"]
        cells += [f"{_median(measured, 'p99'):.2f}", f"{_median(measured, 'least'):.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _memory(folder: Path) -> list[str]:
    size = _publish_forest(folder / "large")
    title = f"with a forest of {size / (1 << 20):.0f} MiB, after a few hundred predictions:"
    lines = [
        f"Proportional set size of all processes, {title}",
        "",
        "| workers | MiB | ÷ one worker |",
        "|---|---|---|",
    ]
    inputs = {f"x{n}": 0.5 for n in range(_FIELDS)}
    script = write_script(folder / "row.lua", [json.dumps({"inputs": inputs})], _HEADERS)
    first = 0
    for workers in (1, 2, 4):
        place = folder / f"memory-{workers}"
        with running_server(folder / "large", place / "log", _settings("forest", workers)) as server:
            wrk(f"{server.url}/v2/predict", script, 3, connections=16, core=None)
            time.sleep(2)
            total = sum(map(pss_bytes, family(server)))
        first = first or total
        lines.append(f"| {workers} | {total / (1 << 20):,.0f} | {total / first:.2f} |")
        click.echo(f"  {lines[-1]}", err=True)
    return lines


def _publish_forest(models: Path) -> int:
    """A forest of about the size that was asked for; its bytes."""
    random = np.random.default_rng(0)
    X = random.random((_SAMPLES, _FIELDS))
    y = (X.sum(axis=1) + random.normal(0, 1.5, _SAMPLES) > _FIELDS / 2).astype(int)
    sample = RandomForestClassifier(10, random_state=0, n_jobs=1).fit(X, y)
    nodes = sum(tree.tree_.node_count for tree in sample.estimators_)
    trees = max(10, round(_FOREST_MIB * (1 << 20) / (nodes / 10 * 80)))
    forest = RandomForestClassifier(trees, random_state=0, n_jobs=1).fit(X, y)
    options = Options(field_names=tuple(f"x{n}" for n in range(_FIELDS)), models_dir=models)
    publish("forest", forest, X, y, task="classification", options=options)
    return (models / "forest/1/model.joblib").stat().st_size


def _settings(model: str, workers: int) -> Mapping[str, str]:
    return {
        "DEFAULT_MODEL": model,
        "WORKERS": str(workers),
        "AUTH_MODE": "jwt",
        "JWT_SECRET": SECRET,
        "LOG_FORMAT": "json",
    }


def family(server: Server) -> list[int]:
    """The processes of a server: what it started, and what that started."""
    found = [server.process.pid]
    for pid in found:
        found += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _least_share(spent: list[float], workers: int) -> float:
    """Of the workers' CPU time, the part of the one that had least to do."""
    busiest = sorted(spent)[-workers:]
    return busiest[0] / sum(busiest)


def _median(measured: list[dict[str, float]], name: str) -> float:
    return statistics.median(each[name] for each in measured)


if __name__ == "__main__":
    main()
