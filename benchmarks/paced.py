"""Load that leaves room: wrk with a pause before each request, for as long as something else takes.

The pauses are random, and long beside the answers, so the rate is about the one that was asked for; wrk itself needs
little of the cores that it shares with the server.
"""

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

CONNECTIONS = 256
_PIECE_SECONDS = 5
_PACED = """
local bodies, turn = {{{bodies}}}, 0
request = function()
  turn = turn % #bodies + 1
  return wrk.format("POST", nil, {{["Content-Type"] = "application/json"}}, bodies[turn])
end
delay = function() return math.random(0, 2 * {pause}) end
done = function(summary, latency)
  local failed = summary.errors
  io.write(string.format('\\n{{"requests": %d, "errors": {{"status": %d, "connect": %d, ',
    summary.requests, failed.status, failed.connect))
  io.write(string.format('"read": %d, "write": %d, "timeout": %d}}, ', failed.read, failed.write, failed.timeout))
  io.write('"latencies": [')
  for i = 1, #latency do
    local microseconds, count = latency(i)
    io.write(string.format("%s[%d, %d]", i > 1 and ", " or "", microseconds, count))
  end
  io.write("]}}\\n")
end
"""


def write_paced(path: Path, bodies: Sequence[str], rate: float) -> Path:
    """For wrk: each connection waits a while before each request, so that all together come to about that rate."""
    quoted = ", ".join(map(json.dumps, bodies))
    path.write_text(_PACED.format(bodies=quoted, pause=round(CONNECTIONS / rate * 1000)))
    return path


def under_load(
    url: str,
    script: Path,
    work: Callable[[], None],
    beside: Callable[[threading.Event], None] = lambda _: None,
) -> dict[str, Any]:
    """Figures of the load while that work is done, and what runs beside it."""
    stop = threading.Event()
    pieces: list[dict[str, Any]] = []

    def offer() -> None:
        while not stop.is_set():
            pieces.append(_piece(url, script))

    threads = [threading.Thread(target=offer), threading.Thread(target=beside, args=(stop,))]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    try:
        work()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return _figures(pieces, time.monotonic() - started)


def together(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of several loads as if they were one."""
    pieces = [piece for part in parts for piece in part["pieces"]]
    return _figures(pieces, sum(part["seconds"] for part in parts))


def _figures(pieces: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    sent = sum(piece["requests"] for piece in pieces)
    failed = sum(sum(piece["errors"].values()) for piece in pieces)
    quantiles = _quantiles(_sum(pieces))
    return {
        "sent": sent,
        "failed": failed,
        "rate": sent / seconds,
        "seconds": seconds,
        "pieces": pieces,
        **quantiles,
    }


def _sum(pieces: Sequence[Mapping[str, Any]]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for piece in pieces:
        for microseconds, count in piece["latencies"]:
            counts[microseconds] += count
    return counts


def _quantiles(counts: Counter[int]) -> dict[str, float]:
    """Milliseconds."""
    found, seen, total = {}, 0, sum(counts.values())
    wanted = {"p50": 0.5, "p99": 0.99}
    for microseconds in sorted(counts):
        seen += counts[microseconds]
        for name in [name for name, share in wanted.items() if seen >= share * total]:
            found[name] = microseconds / 1000
            del wanted[name]
    return found


def _piece(url: str, script: Path) -> dict[str, Any]:
    """Some seconds of it."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{_PIECE_SECONDS}s", "--timeout", "20s", "-s", str(script)]
    ran = subprocess.run([*command, url], capture_output=True, check=True, text=True)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found
