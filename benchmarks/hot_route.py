"""Where each microsecond of a request goes: our own wire, driven in this process, and looked at now and then.

    python -m benchmarks.hot_route [--rounds 400] [--data FILE]

64 connections without a kernel in between: each round gives every one of them a request and waits until all are
answered. The time of a round, divided by 64, is what a request costs beside the system calls for its bytes. A timer
looks at what is being done and counts by part of the service. Results go to `benchmarks/results/hot_route.md`.
"""

import asyncio
import itertools
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, cast

import click
import uvicorn
import uvloop
from pydantic import SecretStr
from uvicorn.server import ServerState

from app.api.protocol import GuardedProtocol, guarded
from app.config import AuthSettings, LimitSettings, ModelSettings, Settings, StorageSettings
from app.factory import Service, create_app
from app.storage.migrations import upgrade
from benchmarks.reference import Reference, make_references
from tests.support.raw import post
from tests.support.server import ROOT
from tests.support.tokens import SECRET, token

RESULTS = ROOT / "benchmarks/results/hot_route.md"
CONNECTIONS = 64
_LOOK_SECONDS = 0.0005
# By the beginning of a module's path; the first that fits.
_PARTS: Mapping[str, Sequence[str]] = {
    "the wire: bytes in, head known, answer out": ("api/protocol", "api/heads", "api/cycle", "api/connections"),
    "who asks, and what is left of the plan": ("api/guard", "auth/", "limits/", "site-packages/limits"),
    "JSON to a row": ("api/parsing",),
    "the model": ("runtimes/", "pipelines/", "inference/execution"),
    "the lane: admission, turns, telling": ("inference/",),
    "the record, and its line in the journal": ("storage/",),
    "counters": ("telemetry/",),
    "the route: terms, headers, answer": ("api/", "factory", "registry/"),
}


class _Transport:
    """Takes what is written, and counts it."""

    def __init__(self) -> None:
        self.answers = 0
        self.last = b""

    def write(self, data: bytes) -> None:
        self.answers += 1
        self.last = data

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 8000)}.get(name, default)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """There is nothing to pause."""

    def resume_reading(self) -> None:
        """Nor to resume."""

    def close(self) -> None:
        """Nor to close."""


_Connection = tuple[GuardedProtocol, _Transport]


@dataclass(frozen=True)
class Found:
    """µs a request, round by round, ascending; and how often each part was looked at."""

    costs: Sequence[float]
    parts: Counter[str]


class _Looks:
    """What was being done whenever the timer rang."""

    def __init__(self) -> None:
        self.parts: Counter[str] = Counter()

    def look(self, _: int, frame: FrameType | None) -> None:
        """The innermost frame of ours, or of a library that works for us, decides."""
        while frame is not None:
            path = frame.f_code.co_filename
            for part, beginnings in _PARTS.items():
                if any(f"/app/{beginning}" in path or f"/{beginning}" in path for beginning in beginnings):
                    self.parts[part] += 1
                    return
            frame = frame.f_back
        self.parts["uvicorn, asyncio, this benchmark"] += 1


@click.command()
@click.option("--rounds", default=400, show_default=True, help="Rounds of 64 requests.")
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True), help="CSV of texts; the project's own without it."
)
def main(rounds: int, data: Path | None) -> None:
    """Measure, print, and write the table."""
    reference = make_references(data, lambda line: click.echo(f"  {line}", err=True))["text"]
    found = {}
    with tempfile.TemporaryDirectory(prefix="presage-bench-") as name:
        for policy in ("off", "require"):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                found[policy] = runner.run(_measure(Path(name) / policy, reference, policy, rounds))
    page = "\n".join([_head(), *_table(found), ""])
    click.echo(page)
    RESULTS.write_text(page)


async def _measure(folder: Path, reference: Reference, policy: Any, rounds: int) -> Found:
    """µs a request of each round, undisturbed; then as many rounds again under the timer."""
    settings = _settings(folder, reference.models, policy)
    upgrade(settings.storage)
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        await app.services.registry.loaded()
        connections = _connect(app, settings)
        bearer = f"Authorization: Bearer {token(exp=4_000_000_000).decode()}"
        requests = itertools.cycle(
            [post("/v1/predict", json.dumps({"text": t}).encode(), bearer) for t in reference.items]
        )
        await _rounds(connections, requests, 10)
        costs = await _rounds(connections, requests, rounds)
        looks = _Looks()
        signal.signal(signal.SIGPROF, looks.look)
        signal.setitimer(signal.ITIMER_PROF, _LOOK_SECONDS, _LOOK_SECONDS)
        await _rounds(connections, requests, 3 * rounds)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if not connections[0][1].last.startswith(b"HTTP/1.1 200"):
            raise click.ClickException(connections[0][1].last.decode())
    return Found(sorted(costs), looks.parts)


async def _rounds(connections: Sequence[_Connection], requests: Iterator[bytes], count: int) -> list[float]:
    costs = []
    for _ in range(count):
        started = time.perf_counter()
        goals = [transport.answers + 1 for _, transport in connections]
        for protocol, _ in connections:
            protocol.data_received(next(requests))
        while any(t.answers < goal for (_, t), goal in zip(connections, goals, strict=True)):  # noqa: ASYNC110 -- turns
            await asyncio.sleep(0)
        costs.append((time.perf_counter() - started) / len(connections) * 1e6)
        await asyncio.sleep(0.002)  # for the threads
    return costs


def _settings(folder: Path, models: Path, policy: Any) -> Settings:
    url = SecretStr(f"sqlite:///{folder}/presage.db")
    folder.mkdir()
    return Settings(
        models=ModelSettings(models_dir=models),
        auth=AuthSettings(auth_mode="jwt", jwt_secret=SecretStr(SECRET), jwt_keys_dir=folder / "keys"),
        limits=LimitSettings(rate_limit="1000000000/minute"),
        storage=StorageSettings(database_url=url, journal_dir=folder / "journal", log_policy=policy),
    )


def _connect(app: Service, settings: Settings) -> list[_Connection]:
    wire = guarded(settings, app.state.metrics, app.straight)
    config = uvicorn.Config(app, http=wire, ws="none", log_config=None, access_log=False, server_header=False)
    config.load()
    state = ServerState()
    connections = []
    for _ in range(CONNECTIONS):
        protocol, transport = wire(config=config, server_state=state, app_state={}), _Transport()
        protocol.connection_made(cast("Any", transport))
        connections.append((protocol, transport))
    return connections


def _table(found: Mapping[str, Found]) -> list[str]:
    lines = ["| in process | µs a request, median | tenth to ninetieth percentile |", "|---|---|---|"]
    for policy, name in (("require", "everything on"), ("off", "without the prediction log")):
        tenths = statistics.quantiles(found[policy].costs, n=10)
        lines.append(f"| {name} | {tenths[4]:.1f} | {tenths[0]:.1f} to {tenths[8]:.1f} |")
    parts = found["require"].parts
    whole, median = parts.total(), statistics.median(found["require"].costs)
    lines += ["", "| part, with everything on | µs | share |", "|---|---|---|"]
    for part, count in parts.most_common():
        lines.append(f"| {part} | {median * count / whole:.1f} | {100 * count / whole:.0f} % |")
    return lines


def _head() -> str:
    command = f"`python -m benchmarks.hot_route`, Python {sys.version.split()[0]}, {datetime.now(UTC):%Y-%m-%d}"
    what = "`POST /v1/predict`, 64 connections, real texts; without the system calls, and the drain's own time."
    return f"# The hot route\n\n{command}.\n{what}\n"


if __name__ == "__main__":
    main()
