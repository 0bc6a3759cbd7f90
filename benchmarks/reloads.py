"""Versions that come and go under load: failed requests, answers that mix versions, latency, and memory afterwards.

    python -m benchmarks.reloads [--reloads 100] [--quiet 20]

Two workers serve the demo sentiment model at half of what they can do, all processes on the same cores. Again and again
a new version is published, by turns of one recipe or the other, and the champion is moved to it; so each is tried,
loaded by both workers, and let go when the next has come. A caller of its own compares every answer with what that very
version answers by itself. Results go to `benchmarks/results/reloads.md`.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import click
import httpx2

from app.config import ModelSettings, Settings
from app.registry.aliases import ALIASES_FILE, write_aliases
from app.registry.loader import load_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from app.training.runs import train_missing
from app.training.sentiment import RECIPE
from benchmarks.load import require, write_script, wrk
from benchmarks.paced import CONNECTIONS, together, under_load, write_paced
from benchmarks.processes import pss_bytes
from benchmarks.workers import family
from tests.support.server import ROOT, TRIED, Server, running_server

RESULTS = ROOT / "benchmarks/results/reloads.md"
WORKERS = 2
TEXTS = ("I love this product", "It broke after two days", "The picture is crisp", "Not what I had hoped for", "Fine")
_TAKEN_SECONDS = 60
_SETTLE_SECONDS = 15


@dataclass
class Checks:
    """What the caller that compares has found."""

    statuses: Counter[str] = field(default_factory=Counter)
    versions: Counter[int] = field(default_factory=Counter)
    wrong: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """Figures of the load in each phase; memory before, with versions of one's own, and after; and how long it took."""

    most: float
    before: Mapping[str, Any]
    swaps: Mapping[str, Any]
    during: Mapping[str, Any]
    after: Mapping[str, Any]
    memory: tuple[int, int, int]
    checks: Checks
    seconds: Sequence[float]
    taken: Sequence[float]


@click.command()
@click.option("--reloads", default=100, show_default=True, help="How many versions come.")
@click.option("--quiet", default=20, show_default=True, help="Seconds of load before and after, for comparison.")
def main(reloads: int, quiet: int) -> None:
    """Measure, print, and write the table."""
    require("wrk")
    with tempfile.TemporaryDirectory(prefix="presage-bench-") as name:
        page = _page(_measure(Path(name), reloads, quiet), reloads)
    click.echo(page)
    RESULTS.write_text(page)


def _measure(folder: Path, reloads: int, quiet: int) -> Measured:
    models = folder / "models"
    train_missing(Settings(models=ModelSettings(models_dir=models)), lambda line: click.echo(line, err=True), RECIPE)
    expected = {version: _answers(models, version) for version in (1, 2)}
    _point(models, 1)
    settings = {"DEFAULT_MODEL": RECIPE.name, "WORKERS": "2", "LOG_FORMAT": "json", "CACHE": "off"}
    settings |= {**TRIED, "SHARE_MODELS_AFTER_SECONDS": "20"}
    with running_server(models, folder / "server/log", settings, arguments=["--migrate"]) as server:
        bodies = [json.dumps({"inputs": {"text": text}}) for text in TEXTS]
        script = write_script(folder / "post.lua", bodies)
        url = f"{server.url}/v2/predict"
        most = max(wrk(url, script, 3, connections=128, core=None)["rate"] for _ in range(2))
        paced = write_paced(folder / "paced.lua", bodies, most / 2)
        one = under_load(url, paced, _for_seconds(quiet))
        memory_before = _memory(server)
        _swap(server, models, 2)
        before = together(one, under_load(url, paced, _for_seconds(quiet)))  # the recipes differ by themselves
        _swap(server, models, 1)
        swaps = under_load(url, paced, lambda: _swap_back_and_forth(server, models, reloads // 5))
        checks, seconds = Checks(), []

        def reload_all() -> None:
            for version in range(3, 3 + reloads):
                seconds.append(_reload(server, models, version))
                click.echo(f"  version {version} is served after {seconds[-1]:.1f} s", err=True)

        during = under_load(url, paced, reload_all, lambda stop: _check(server, expected, checks, stop))
        memory_alone = _memory(server)
        _wait(lambda: bool(server.events("models_shared_again")))
        _wait(lambda: len(server.events("generation_serves")) == 2)  # at the start, and now
        after = under_load(url, paced, _for_seconds(quiet))
        memory_after = _memory(server)
        taken = _seconds_until_taken(server)
    memory = (memory_before, memory_alone, memory_after)
    return Measured(most, before, swaps, during, after, memory, checks, seconds, taken)


def _page(found: Measured, reloads: int) -> str:
    before, swaps, during = found.before, found.swaps, found.during
    rows = [
        ("before, half with either recipe", before),
        (f"{reloads // 5 * 2} swaps of versions that were tried before", swaps),
    ]
    rows += [(f"{reloads} new versions, each tried first", during), ("after, with the slower recipe", found.after)]
    sizes = [size >> 20 for size in found.memory]
    growth, checks, taken = found.memory[2] / found.memory[0], found.checks, found.taken
    alone = f"{sizes[1]} while each worker has a version of its own"
    compared, statuses = sum(checks.statuses.values()), dict(checks.statuses)
    lines: list[str] = [
        f"p99 during the swaps ÷ before: **{swaps['p99'] / before['p99']:.1f}**",
        f"p99 while new versions are tried, one upon the other ÷ before: **{during['p99'] / before['p99']:.1f}**",
        f"memory of all (PSS): {sizes[0]} MiB before, {alone}, {sizes[2]} once they share one: **{growth:.3f}**",
        f"answers compared: {compared:,} of {len(checks.versions)} versions, statuses {statuses}",
        f"answers that were not their version's: **{len(checks.wrong)}**",
        f"from publication to the first answer, trial included: median {median(found.seconds):.1f} s",
        f"from the end of a trial until both workers answer: median {median(taken):.2f} s, most **{max(taken):.2f} s**",
    ]
    return "\n".join([_head(found.most, before["rate"]), *_table(rows), "", *(f"- {line}" for line in lines), ""])


def _head(most: float, rate: float) -> str:
    command = f"`python -m benchmarks.reloads`, Python {sys.version.split()[0]}, {os.cpu_count()} cores"
    return (
        f"# Versions that come and go under load\n\n{command}, {datetime.now(UTC):%Y-%m-%d}. The demo sentiment model, "
        f"two workers, everything on; {rate:,.0f} requests/s over {CONNECTIONS} connections that pause before each, "
        f"about half of the {most:,.0f} that wrk gets without pauses. Load, trials and workers share the cores.\n"
    )


def _table(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    lines = ["| | requests | a second | failed | p50 ms | p99 ms |", "|---|---|---|---|---|---|"]
    for name, found in rows:
        cells = [f"{found['sent']:,}", f"{found['rate']:,.0f}", str(found["failed"])]
        cells += [f"{found['p50']:.2f}", f"{found['p99']:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _answers(models: Path, version: int) -> dict[str, Any]:
    """What the version answers by itself."""
    model = load_version(DirectorySource(models), RECIPE.name, version, Trust())
    rows = [{"text": text} for text in TEXTS]
    outcomes = model.pipeline.postprocess(model.runtime.predict(model.pipeline.preprocess(rows), len(rows)))
    return dict(zip(TEXTS, [(o.value, o.probabilities) for o in outcomes], strict=True))


def _publish(models: Path, version: int) -> None:
    """A copy of one of the two recipes' versions under another number, which appears as a whole."""
    source, hidden = models / RECIPE.name / str(_recipe(version)), models / RECIPE.name / f".{version}"
    shutil.copytree(source, hidden)
    manifest = json.loads((hidden / "manifest.json").read_bytes())
    (hidden / "manifest.json").write_text(json.dumps({**manifest, "version": version}))
    hidden.rename(models / RECIPE.name / str(version))
    _point(models, version)


def _recipe(version: int) -> int:
    return 1 + (version + 1) % 2


def _point(models: Path, version: int) -> None:
    write_aliases(models / RECIPE.name / ALIASES_FILE, {"champion": version})


def _reload(server: Server, models: Path, version: int) -> float:
    started = time.monotonic()
    _publish(models, version)
    _taken(server, version)
    if version - 1 not in RECIPE.versions:  # of which copies are made
        shutil.rmtree(models / RECIPE.name / str(version - 1))
    return time.monotonic() - started


def _taken(server: Server, version: int, moves: int = WORKERS) -> None:
    """Both workers answer with it, after so many moves to it in all."""
    _wait(lambda: _moves(server, version) >= moves)


def _moves(server: Server, version: int) -> int:
    return sum(event["after"]["champion"] == version for event in server.events("aliases_moved"))


def _swap(server: Server, models: Path, version: int) -> None:
    """To one of the recipes; it is loaded by both workers, and the other one let go."""
    before = _moves(server, version)
    _point(models, version)
    _taken(server, version, before + WORKERS)


def _swap_back_and_forth(server: Server, models: Path, times: int) -> None:
    for _ in range(times):
        for version in (2, 1):
            _swap(server, models, version)
            time.sleep(1)


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TAKEN_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a version is not served")
        time.sleep(0.2)  # reading the log takes time of the same cores


def _seconds_until_taken(server: Server) -> Sequence[float]:
    moves: dict[int, datetime] = {}
    for event in server.events("aliases_moved"):
        moves[event["after"]["champion"]] = datetime.fromisoformat(event["timestamp"])
    ended = {event["version"]: datetime.fromisoformat(event["timestamp"]) for event in server.events("trial_ended")}
    came = moves.keys() & ended.keys() - RECIPE.versions.keys()  # those of the recipe come more than once
    return [(moves[version] - ended[version]).total_seconds() for version in came]


def _for_seconds(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


def _check(server: Server, expected: Mapping[int, Mapping[str, Any]], checks: Checks, stop: threading.Event) -> None:
    """Ask one text after the other, and compare."""
    with httpx2.Client(base_url=server.url, timeout=30) as client:
        turn = 0
        while not stop.wait(0.01):
            text = TEXTS[turn % len(TEXTS)]
            turn += 1
            answer = client.post("/v2/predict", json={"inputs": {"text": text}})
            checks.statuses[str(answer.status_code)] += 1
            body = answer.json()
            checks.versions[body["version"]] += 1
            value, probabilities = expected[_recipe(body["version"])][text]
            close = all(abs(body["probabilities"][label] - p) < 1e-6 for label, p in probabilities.items())
            if body["prediction"] != value or not close:
                checks.wrong.append(body)


def _memory(server: Server) -> int:
    """Bytes, once what the last version has left is given back, and no version is being tried."""
    time.sleep(_SETTLE_SECONDS)
    return sum(map(pss_bytes, family(server)))


if __name__ == "__main__":
    main()
