"""What the benchmarks share: a server on one core, and wrk on the other."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks.processes import LOAD_CORE
from tests.support.server import Server, running_server

# The bodies take turns. Requests are put together before the first is sent, so that wrk does nothing but send.
_SCRIPT = """
local bodies = {{
{bodies}
}}
local headers = {{
{headers}
}}
local requests, turn = {{}}, 0

init = function(arguments)
  for i, body in ipairs(bodies) do
    requests[i] = wrk.format("POST", nil, headers, body)
  end
end

request = function()
  turn = turn % #requests + 1
  return requests[turn]
end

done = function(summary, latency, rate)
  local failed = summary.errors
  io.write(string.format('\\n{{"requests": %d, "microseconds": %d, "p50": %.3f, "p99": %.3f, ', summary.requests,
    summary.duration, latency:percentile(50) / 1000, latency:percentile(99) / 1000))
  io.write(string.format('"errors": {{"status": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d}}}}\\n',
    failed.status, failed.connect, failed.read, failed.write, failed.timeout))
end
"""
# What wrk may take beyond the measurement itself.
_GRACE_SECONDS = 15


def require(*commands: str) -> None:
    """Raise UsageError with one line that names the first command that is missing and the package that has it."""
    packages = {"wrk": "wrk", "taskset": "util-linux"}
    for command in commands:
        if shutil.which(command) is None:
            raise click.UsageError(f"{command} is missing: apt-get install {packages[command]}")


def write_script(path: Path, bodies: Sequence[str], headers: Mapping[str, str] | None = None) -> Path:
    """What wrk sends: these bodies in turn, with these headers."""
    named = {"Content-Type": "application/json", **(headers or {})}
    lines = ",\n".join(f"  [{_lua(name)}] = {_lua(value)}" for name, value in named.items())
    path.write_text(_SCRIPT.format(bodies=",\n".join(f"  {_lua(body)}" for body in bodies), headers=lines))
    return path


@contextmanager
def pinned_server(
    models: Path, place: Path, environment: Mapping[str, str], *, module: Sequence[str] = ()
) -> Iterator[Server]:
    """A server of the toy model that has the first core to itself; `module` is run in the place of `app serve`."""
    settings = {"DEFAULT_MODEL": "toy", "LOG_FORMAT": "json", **environment}
    with running_server(models, place / "log", settings, module=module) as server:
        subprocess.run(["taskset", "-acp", "0", str(server.process.pid)], check=True, capture_output=True)
        yield server


def wrk(
    url: str,
    script: Path,
    seconds: int,
    *,
    connections: int = 32,
    refusals: bool = False,
    core: int | None = LOAD_CORE,
) -> dict[str, float]:
    """Good answers a second (`rate`), and milliseconds of latency of all answers (`p50`, `p99`).

    The load is closed: each connection sends its next request when its last was answered. Every answer must come, and
    be good, unless `refusals` are expected. Raises ClickException.
    """
    command = ["taskset", "-c", str(core)] if core is not None else []
    command += ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
    command += ["-s", str(script), url]
    try:
        printed = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=seconds + _GRACE_SECONDS
        ).stdout
    except subprocess.SubprocessError as error:
        raise click.ClickException(f"wrk: {error}") from None
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    refused = found["errors"].pop("status")
    if any(found["errors"].values()) or not found["requests"] or (refused and not refusals):
        raise click.ClickException(f"not every answer came, or was a 200: {refused} refused, {found}")
    rate = (found["requests"] - refused) / found["microseconds"] * 1e6
    return {"rate": rate, "p50": found["p50"], "p99": found["p99"]}


def _lua(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r") + '"'
