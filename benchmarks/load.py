"""What the benchmarks share: a server on one core, and wrk on the other."""

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from tests.support.server import Server, running_server

_SCRIPT = """
wrk.method = "POST"
wrk.body = '{body}'
wrk.headers["Content-Type"] = "application/json"
"""


def write_script(path: Path, body: str, headers: Mapping[str, str] | None = None) -> Path:
    """What wrk sends: this body, with these headers."""
    lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in (headers or {}).items()]
    path.write_text(_SCRIPT.format(body=body) + "\n".join(lines) + "\n")
    return path


@contextmanager
def pinned_server(
    models: Path, place: Path, environment: Mapping[str, str], *, module: Sequence[str] = ()
) -> Iterator[Server]:
    """A server of the toy model that has the first core to itself; `module` is run in the place of `app serve`."""
    settings = {"DEFAULT_MODEL": "toy", "LOG_FORMAT": "json", "LOG_LEVEL": "warning", **environment}
    with running_server(models, place / "log", settings, module=module) as server:
        subprocess.run(["taskset", "-acp", "0", str(server.process.pid)], check=True, capture_output=True)
        yield server


def wrk(server: Server, script: Path, seconds: int) -> dict[str, float]:
    """Requests a second, and milliseconds of latency at the 50th and 99th percentile. Every answer must be a 200."""
    command = ["taskset", "-c", "1", "wrk", "-t1", "-c32", f"-d{seconds}s", "--latency", "-s", str(script)]
    printed = subprocess.run([*command, f"{server.url}/v2/predict"], check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in printed:
        raise click.ClickException(printed)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", printed)
    tail = {f"p{q}": _milliseconds(printed, q) for q in (50, 99)}
    return {"rate": float(rate[1]) if rate else 0.0, **tail}


def _milliseconds(printed: str, quantile: int) -> float:
    found = re.search(rf"{quantile}%\s+([\d.]+)(us|ms|s)", printed)
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]] if found else 0.0
