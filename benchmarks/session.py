"""A run: rounds in which every server is started, measured and ended, and a record of each figure as it comes.

Servers take turns within a round, and each round begins with another one: a machine that is slower for a while is
slower for all, and ratios are taken within a round.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environments import NotInstalled, python_of
from benchmarks.reference import Reference, batch_of, make_references
from benchmarks.servers import PRESAGE, presage, row_systems, text_systems
from benchmarks.serving import FAILURES, Serving, serving
from benchmarks.system import System

MEASURES = ("single", "tail", "memory", "batch", "forest", "overload")
CONNECTIONS = 64
BATCH_CONNECTIONS = 2
OVERLOAD = "presage, COMPILE=off"
# In an open loop connections shall not be what is scarce; the service grants one address 512.
OPEN_CONNECTIONS = 256


@dataclass(frozen=True)
class Plan:
    """What a run does. An empty `only`, `tails` (whose tail is measured) or `forests` is all servers."""

    rounds: int
    seconds: int
    data: Path | None = None
    only: frozenset[str] = frozenset()
    measures: frozenset[str] = frozenset(MEASURES)
    install: bool = True
    tails: frozenset[str] = frozenset()
    forests: frozenset[str] = frozenset()
    overload_seconds: int = 10


@dataclass
class Session:
    """The plan under way. `keep` is given each record, `say` each line of progress."""

    plan: Plan
    keep: Callable[[Mapping[str, Any]], None]
    say: Callable[[str], None]
    pythons: dict[str, Path] = field(default_factory=dict)

    def run(self) -> None:
        """Prepare, and take all rounds. A server that fails is a record, and the run goes on."""
        plan = self.plan
        references = make_references(plan.data, self.say)
        texts = self._ready_to_run(text_systems())
        rows = self._ready_to_run(row_systems(references["row"].fields), among=plan.forests)
        for turn in range(plan.rounds):
            self.say(f"round {turn + 1} of {plan.rounds}")
            if plan.measures & {"single", "tail", "memory", "batch"}:
                self._alone(turn, references["text"])
                for system in _rotated(texts, turn):
                    self._visit(turn, system, references["text"], self._measure_text)
            if "forest" in plan.measures:
                for system in _rotated(rows, turn):
                    self._visit(turn, system, references["row"], self._measure_row)
            if "overload" in plan.measures and self._wanted(PRESAGE):
                system = presage("row", references["row"].fields, name=OVERLOAD, COMPILE="off")
                self._visit(turn, system, references["row"], self._measure_overload)

    def _ready_to_run(self, systems: Iterable[System], among: frozenset[str] = frozenset()) -> list[System]:
        """Those that are wanted and have an environment; the others' reasons are kept."""
        ready = []
        for system in systems:
            if not self._wanted(system.name) or (among and system.name not in among):
                continue
            try:
                self.pythons[system.name] = self._python(system)
            except NotInstalled as error:
                self._record(0, system, "failed", {"reason": str(error)})
            else:
                self.keep({"kind": "server", **_described(system)})
                ready.append(system)
        return ready

    def _python(self, system: System) -> Path:
        if system.environment is None:
            return Path(sys.executable)
        return python_of(system.environment, install=self.plan.install, say=self.say)

    def _wanted(self, name: str) -> bool:
        return not self.plan.only or name in self.plan.only

    def _visit(self, turn: int, system: System, reference: Reference, measure: Callable[[int, Serving], None]) -> None:
        try:
            with serving(system, self.pythons.get(system.name, Path(sys.executable)), reference) as running:
                measure(turn, running)
        except FAILURES as error:
            self._record(turn, system, "failed", {"reason": str(error)})

    def _alone(self, turn: int, reference: Reference) -> None:
        """scikit-learn in a process of its own, while no server runs: rows a second, and memory."""
        found = reference.in_process(batch_of(self.plan.data), min(self.plan.seconds, 3))
        figures = {"rate": found["rate"], "pss_bytes": found["pss_bytes"]}
        self.keep({"kind": "figures", "round": turn, "server": "scikit-learn", "measure": "alone", **figures})
        self.say(f"  scikit-learn alone: {found['rate']:,.0f} rows/s, {found['pss_bytes'] / 2**20:.0f} MiB")

    def _measure_text(self, turn: int, running: Serving) -> None:
        system, plan = running.system, self.plan
        found = running.closed_loop(plan.seconds, CONNECTIONS)
        self._record(turn, system, "single", found)
        self._record(turn, system, "memory", {"pss_bytes": running.group.pss_bytes()})
        if "tail" in plan.measures and (not plan.tails or system.name in plan.tails):
            self._record(turn, system, "tail", running.open_loop(found["rate"] / 2, plan.seconds, OPEN_CONNECTIONS))
        if "batch" in plan.measures and system.name == PRESAGE:
            texts = batch_of(plan.data)
            found = running.wrk("/v1/batch", [json.dumps({"texts": texts})], plan.seconds, BATCH_CONNECTIONS)
            self._record(turn, system, "batch", {**found, "rate": found["rate"] * len(texts)})

    def _measure_row(self, turn: int, running: Serving) -> None:
        self._record(turn, running.system, "forest", running.closed_loop(self.plan.seconds, 1))

    def _measure_overload(self, turn: int, running: Serving) -> None:
        most = running.maximum(max(1, self.plan.seconds // 2))
        seconds = self.plan.overload_seconds
        found = running.open_loop(2 * most, seconds, OPEN_CONNECTIONS)
        self._record(turn, running.system, "overload", {"seconds": seconds, "maximum": most, **found})

    def _record(self, turn: int, system: System, measure: str, figures: Mapping[str, Any]) -> None:
        self.keep({"kind": "figures", "round": turn, "server": system.name, "measure": measure, **figures})
        shown = ", ".join(f"{name} {_short(value)}" for name, value in figures.items())
        self.say(f"  {system.name}, {system.task}, {measure}: {shown}")


def _described(system: System) -> Mapping[str, str]:
    return {"server": system.name, "task": system.task, "version": system.version, "settings": system.settings}


def _rotated(systems: Sequence[System], turn: int) -> list[System]:
    start = turn % len(systems) if systems else 0
    return [*systems[start:], *systems[:start]]


def _short(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
