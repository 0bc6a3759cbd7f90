"""The table of a run, from its record: medians over the rounds, with the least and the most.

A ratio is taken within each round, between figures that were measured minutes apart on the same machine.
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.servers import PRESAGE
from benchmarks.session import BATCH_CONNECTIONS, CONNECTIONS, OPEN_CONNECTIONS, OVERLOAD

Record = Mapping[str, Any]
Show = Callable[[float], str]
TITLES = {
    PRESAGE: "Presage",
    "mosec": "mosec",
    "bentoml": "BentoML",
    "litserve": "LitServe",
    "mlserver": "MLServer",
    "mlflow": "MLflow",
    "plain": "FastAPI, as in a tutorial",
    "echo": "uvicorn, an echo",
    "scikit-learn": "scikit-learn alone",
}
_MIB = 2**20
_TAIL = f"""\
Open loop: requests leave as a Poisson process, whether or not earlier ones were answered, and latency counts from when
each was due. Half of what the same server did above, {OPEN_CONNECTIONS} connections.
"""
_OVERLOAD = f"""\
The forest without a compiled form (`COMPILE=off`), open loop, {OPEN_CONNECTIONS} connections. Goodput: 200s that
came while the load lasted.
"""
_MEMORY = """\
Proportional set size of all processes of a server after its load, beside that of a Python process that has imported
scikit-learn and loaded the same model.
"""


class Figures:
    """A record's figures by measure, server and round."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._of: dict[str, dict[str, dict[int, Record]]] = defaultdict(lambda: defaultdict(dict))
        for record in records:
            if record["kind"] == "figures":
                self._of[record["measure"]][record["server"]][record["round"]] = record

    def servers(self, measure: str) -> list[str]:
        """Those that have it, in the order of TITLES."""
        return [name for name in TITLES if name in self._of[measure]]

    def of(self, measure: str, server: str, name: str) -> list[float]:
        """A figure in each round."""
        return [record[name] for record in self._of[measure][server].values()]

    def each(self, measure: str, server: str) -> list[Record]:
        """All figures of each round."""
        return list(self._of[measure][server].values())

    def ratios(self, over: tuple[str, str, str], under: tuple[str, str, str]) -> list[float]:
        """One figure by another, in each round that has both; each is (measure, server, name)."""
        above, below = self._of[over[0]][over[1]], self._of[under[0]][under[1]]
        return [above[turn][over[2]] / below[turn][under[2]] for turn in above if turn in below]


def report(records: Sequence[Record]) -> str:
    """The page, in Markdown."""
    figures = Figures(records)
    sections = [_single, _tail, _forest, _batch, _overload, _memory]
    parts = [_head(records[0]), *(part for section in sections if (part := section(figures)))]
    return "\n\n".join([*parts, _settings(records), *_failures(records)]) + "\n"


def spread(values: Sequence[float], show: Show) -> str:
    """`median | least to most`, as two cells."""
    if not values:
        return "- | -"
    return f"{show(statistics.median(values))} | {show(min(values))} to {show(max(values))}"


def _head(run: Record) -> str:
    return (
        f"# Beside the peers\n\n"
        f"`{run['command']}`, rounds: {run['rounds']}, of {run['seconds']} s, {run['date']}, {run['cpu']}, "
        f"Python {run['python']}, texts of {run['data']}. "
        f"Before the run {run['busy']:.0%} of the two cores were in use.\n\n"
        "One core for each server with all its processes, another for the load. Before each measurement the answers to "
        "two dozen requests, a dozen at a time, were those of scikit-learn. Medians over the rounds, with the least "
        "and the most; ratios are of the same round. This service had authentication, a limit, the prediction log and "
        "metrics on; the peers had none of these but metrics, where they are on by default."
    )


def _single(figures: Figures) -> str:
    lines = [
        f"## One text a request, {CONNECTIONS} connections\n",
        "| server | requests/s | least to most | Presage ÷ it | least to most | p50 ms | p99 ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in figures.servers("single"):
        ratio = figures.ratios(("single", PRESAGE, "rate"), ("single", name, "rate"))
        tail = " | ".join(_ms(statistics.median(figures.of("single", name, p))) for p in ("p50", "p99"))
        rate = spread(figures.of("single", name, "rate"), _count)
        lines.append(f"| {TITLES[name]} | {rate} | {spread(ratio, _ratio)} | {tail} |")
    return "\n".join(lines) if len(lines) > 3 else ""


def _tail(figures: Figures) -> str:
    lines = [
        "## The tail at half of the maximum rate\n",
        _TAIL,
        "| server | requests/s | p50 ms | p99 ms | p99 ÷ p50 | least to most | not answered with 200 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in figures.servers("tail"):
        cells = [_count(statistics.median(figures.of("tail", name, "offered")))]
        cells += [_ms(statistics.median(figures.of("tail", name, p))) for p in ("p50", "p99")]
        cells.append(spread(figures.ratios(("tail", name, "p99"), ("tail", name, "p50")), _ratio))
        cells.append(_count(sum(_not_good(record) for record in figures.each("tail", name))))
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 4 else ""


def _forest(figures: Figures) -> str:
    lines = [
        "## One row of a forest of 100 trees, one connection\n",
        "| server | p50 ms | least to most | p99 ms | least to most | Presage's p50 ÷ its | least to most |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in figures.servers("forest"):
        cells = [spread(figures.of("forest", name, p), _ms) for p in ("p50", "p99")]
        ratio = figures.ratios(("forest", PRESAGE, "p50"), ("forest", name, "p50"))
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} | {spread(ratio, _ratio)} |")
    return "\n".join(lines) if len(lines) > 3 else ""


def _batch(figures: Figures) -> str:
    rate, alone = figures.of("batch", PRESAGE, "rate"), figures.of("alone", "scikit-learn", "rate")
    if not rate or not alone:
        return ""
    ratio = figures.ratios(("batch", PRESAGE, "rate"), ("alone", "scikit-learn", "rate"))
    return "\n".join(
        [
            f"## `/v1/batch` with 1,000 texts, {BATCH_CONNECTIONS} connections\n",
            "| | rows/s | least to most |",
            "|---|---|---|",
            f"| Presage | {spread(rate, _count)} |",
            f"| `pipeline.predict` on the same texts, in process | {spread(alone, _count)} |",
            f"| ratio | {spread(ratio, _ratio)} |",
        ]
    )


def _overload(figures: Figures) -> str:
    runs = figures.each("overload", OVERLOAD)
    if not runs:
        return ""
    statuses: Counter[str] = sum((Counter(run["statuses"]) for run in runs), Counter())
    lost = sum(run["unanswered"] + run["broken"] for run in runs)
    counted = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
    goodput = [run["goodput"] / run["maximum"] for run in runs]
    rows = [
        ("seconds", " | ".join([f"{runs[0]['seconds']:.0f}", ""])),
        ("maximum, requests/s", spread([run["maximum"] for run in runs], _count)),
        ("goodput ÷ maximum", spread(goodput, _ratio)),
        ("p99 of the admitted, ms", spread([run["p99"] for run in runs if "p99" in run], _ms)),
        ("p99 of the refused, ms", spread([run["refused_p99"] for run in runs if "refused_p99" in run], _ms)),
        ("answers, all rounds", f"{counted} | never answered: {lost:,}"),
    ]
    return "\n".join(
        [
            "## Twice the maximum rate\n",
            _OVERLOAD,
            "| Presage | | least to most |",
            "|---|---|---|",
            *(f"| {name} | {cells} |" for name, cells in rows),
        ]
    )


def _memory(figures: Figures) -> str:
    alone = ("alone", "scikit-learn", "pss_bytes")
    lines = [
        "## Memory\n",
        _MEMORY,
        "| server | MiB | least to most | ÷ scikit-learn alone | least to most | MiB more |",
        "|---|---|---|---|---|---|",
    ]
    for name in figures.servers("memory"):
        held = ("memory", name, "pss_bytes")
        sizes = [size / _MIB for size in figures.of(*held)]
        more = statistics.median(sizes) - statistics.median(figures.of(*alone)) / _MIB
        ratio = spread(figures.ratios(held, alone), _ratio)
        lines.append(f"| {TITLES[name]} | {spread(sizes, _count)} | {ratio} | {more:,.0f} |")
    weight = [size / _MIB for size in figures.of(*alone)]
    return "\n".join([*lines, f"| scikit-learn alone | {spread(weight, _count)} | | | |"]) if len(lines) > 4 else ""


def _settings(records: Sequence[Record]) -> str:
    lines = ["## How each was set up\n", "| server | version | settings |", "|---|---|---|"]
    described = {record["server"]: record for record in records if record["kind"] == "server"}
    lines += [f"| {TITLES[name]} | {found['version']} | {found['settings']} |" for name, found in described.items()]
    return "\n".join(lines)


def _failures(records: Sequence[Record]) -> list[str]:
    failed = [record for record in records if record.get("measure") == "failed"]
    lines = [f"- {TITLES.get(record['server'], record['server'])}: {record['reason']}" for record in failed]
    return ["\n".join(["## Not measured\n", *dict.fromkeys(lines)])] if lines else []


def _not_good(record: Record) -> int:
    refused = sum(count for status, count in record["statuses"].items() if status != "200")
    return int(refused + record["unanswered"] + record["broken"])


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _ms(value: float) -> str:
    return f"{value:.2f}"
