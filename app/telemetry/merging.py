"""Add up what several processes have counted, so that a sum never falls while processes come and go.

Each process writes what it has counted into a slot. One that takes the slot of another adds to all of its own what had
been counted there before: its inheritance.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeAlias

from app.telemetry.families import Family, Series

# How the values of one gauge in several processes become one.
Merge: TypeAlias = Callable[[Iterable[float]], float]


class Published(NamedTuple):
    """What stands in a slot: the owner's families, and what was counted there before it came."""

    own: list[Family]
    inherited: list[Family]


def merge(slots: Iterable[tuple[Published, bool]], gauges: Mapping[str, Merge]) -> list[Family]:
    """One family of each name; gauges only of slots whose owner lives, by their own rule or else the greatest."""
    shapes: dict[str, Family] = {}
    found: dict[str, dict[tuple[str, ...], list[tuple[float, ...]]]] = {}
    for published, alive in slots:
        for family in _totals(published, gauges=alive):
            shape = shapes.setdefault(family.name, family)
            if shape.fits(family):
                columns = found.setdefault(family.name, {})
                for values, numbers in family.series.items():
                    columns.setdefault(values, []).append(numbers)
    return [_merged(shape, found[name], gauges.get(name, max)) for name, shape in shapes.items()]


def _merged(shape: Family, found: dict[tuple[str, ...], list[tuple[float, ...]]], gauge: Merge) -> Family:
    # The exact sum, rounded once: when a summand grows it cannot become less, in whatever order they come.
    rule = math.fsum if shape.grows else gauge
    series = {values: tuple(map(rule, zip(*rows, strict=True))) for values, rows in found.items()}
    return shape._replace(series=series)


def _totals(published: Published, *, gauges: bool) -> list[Family]:
    inherited = {family.name: family for family in published.inherited}
    totals = []
    for family in published.own:
        before = inherited.pop(family.name, None)
        if not family.grows:
            totals += [family] if gauges else []
        elif before is None or not before.fits(family):
            totals.append(family)
        else:
            totals.append(family._replace(series=_added(family.series, before.series)))
    return [*totals, *inherited.values()]


def _added(one: Series, other: Series) -> Series:
    series = dict(other)
    for values, numbers in one.items():
        before = other.get(values)
        series[values] = tuple(map(operator.add, numbers, before)) if before else numbers
    return series


def inherit(former: Published, own: list[Family]) -> list[Family]:
    """What has to be added to what a new owner counts, so that its slot goes on from where the former one ended.

    What it has in its counters already was counted by the process that it was forked from, and does not count.
    """
    before = {family.name: family for family in _totals(former, gauges=False)}
    inherited = []
    for family in own:
        if family.grows:
            known = before.pop(family.name, None)
            inherited.append(_rest(family, known.series if known and known.fits(family) else {}))
    return [family for family in (*inherited, *before.values()) if family.series]


def _rest(own: Family, former: Series) -> Family:
    series = {}
    for values in (*former, *(own.series.keys() - former.keys())):
        numbers = own.series.get(values) or (0.0,) * len(former[values])
        rest = tuple(map(_difference, former.get(values) or (0.0,) * len(numbers), numbers))
        if any(rest) or values not in own.series:
            series[values] = rest
    return own._replace(series=series)


def _difference(total: float, part: float) -> float:
    """The least number but one that makes at least the total with the part: rounding must not take anything away."""
    rest = total - part
    return rest if rest + part >= total else math.nextafter(rest, math.inf)
