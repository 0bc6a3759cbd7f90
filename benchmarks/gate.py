"""What the gate costs: the hot route with credentials, limits, bounds and headers, and without any of them.

    python -m benchmarks.gate [--seconds 5] [--rounds 5]

The server has one core to itself and the load generator (wrk) the other; the modes take turns in one run. Beside
requests a second stands the CPU time of the server for each of them, which the generator does not disturb. Results go
to `benchmarks/results/gate.md`.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks.load import pinned_server, write_script, wrk
from tests.support.server import ROOT, Server
from tests.support.tokens import SECRET, token
from tests.support.versions import write_classifier

RESULTS = ROOT / "benchmarks/results/gate.md"
_TICKS = os.sysconf("SC_CLK_TCK")
# A plan that has room for the whole run, as that of a caller who is let in has.
_ENVIRONMENT = {"AUTH_MODE": "jwt", "JWT_SECRET": SECRET, "RATE_LIMIT": "1000000000/minute", "LOG_POLICY": "off"}
_MODES: Mapping[str, list[str]] = {
    "off": ["benchmarks.ungated"],
    "on": [],
    "off, and uvicorn's own wire": ["benchmarks.ungated", "--stock"],
}


@click.command()
@click.option("--seconds", default=5, show_default=True, help="Length of one measurement.")
@click.option("--rounds", default=5, show_default=True, help="Turns that each mode takes.")
def main(seconds: int, rounds: int) -> None:
    """Measure, print, and write the table."""
    found: dict[str, list[tuple[float, float]]] = {mode: [] for mode in _MODES}
    with tempfile.TemporaryDirectory(prefix="presage-bench-") as name:
        folder = Path(name)
        write_classifier(folder / "models")
        bearer = {"Authorization": f"Bearer {token(exp=4_000_000_000).decode()}"}
        script = write_script(folder / "post.lua", ['{"inputs": {"x": 3}}'], bearer)
        for turn in range(rounds):
            for mode, module in _MODES.items():
                with pinned_server(
                    folder / "models", folder / f"{len(mode)}-{turn}", _ENVIRONMENT, module=module
                ) as server:
                    wrk(_route(server), script, 1)
                    found[mode].append(_measure(server, script, seconds))
                rate, cost = found[mode][-1]
                click.echo(f"  gate {mode}: {rate:,.0f} requests/s, {cost:.1f} µs of CPU each", err=True)
    page = "\n".join([_head(), *_table(found), ""])
    click.echo(page)
    RESULTS.write_text(page)


def _measure(server: Server, script: Path, seconds: int) -> tuple[float, float]:
    """Requests a second, and the server's CPU time for each in µs."""
    before = _cpu_seconds(server)
    rate = wrk(_route(server), script, seconds)["rate"]
    return rate, (_cpu_seconds(server) - before) / (rate * seconds) * 1e6


def _route(server: Server) -> str:
    return f"{server.url}/v2/predict"


def _cpu_seconds(server: Server) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _table(found: Mapping[str, list[tuple[float, float]]]) -> list[str]:
    lines = ["| gate | requests/s, median | least to most | µs of CPU a request, median | least to most |"]
    lines.append("|---|---|---|---|---|")
    for mode, pairs in found.items():
        rates, costs = zip(*pairs, strict=True)
        lines.append(
            f"| {mode} | {statistics.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} "
            f"| {statistics.median(costs):.1f} | {min(costs):.1f} to {max(costs):.1f} |"
        )
    off_rate, off_cost = (statistics.median(values) for values in zip(*found["off"], strict=True))
    rate, cost = (statistics.median(values) for values in zip(*found["on"], strict=True))
    return [*lines, "", f"On: {rate / off_rate:.3f} of off, {cost - off_cost:.1f} µs of CPU more a request."]


def _head() -> str:
    command = f"`python -m benchmarks.gate`, Python {sys.version.split()[0]}, {datetime.now(UTC):%Y-%m-%d}"
    what = "The gate: a remembered token, scopes, a plan, security and rate limit headers. The wire bounds what comes."
    return f"# The gate\n\n{command}. One core for the server, one for wrk with 32 connections.\n{what}\n"


if __name__ == "__main__":
    main()
