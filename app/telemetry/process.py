"""What the kernel says of this process."""

import re
import time
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric

_ROLLUP = Path("/proc/self/smaps_rollup")
_RESIDENT = "process_resident_memory_bytes"


class Process(ProcessCollector):
    """The library's families; once it was measured, resident memory is this process's share of the pages that it has.

    At the limit of open files nothing can be read; then what was read last stands, since a counter must not go away.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._share = 0.0
        self._last: dict[str, Metric] = {}
        super().__init__(registry=registry)

    def collect(self) -> Iterable[Metric]:
        """The exposition."""
        self._last.update({metric.name: metric for metric in super().collect()})
        if self._share:
            resident = "Memory: what no other process has, and this one's share of what several have, in bytes."
            self._last[_RESIDENT] = GaugeMetricFamily(_RESIDENT, resident, value=self._share)
        return list(self._last.values())

    def measure_share(self) -> float:
        """Look at every page, on a thread: it takes up to 15 ms for each GB; returns the seconds it took."""
        began = time.monotonic()
        self._share = proportional_bytes() or self._share
        return time.monotonic() - began


def proportional_bytes() -> float:
    """This process's pages, each divided by the number of processes that have it; 0 where the kernel does not say."""
    try:
        found = re.search(r"^Pss: +(\d+) kB$", _ROLLUP.read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    return int(found[1]) * 1024.0 if found else 0.0
