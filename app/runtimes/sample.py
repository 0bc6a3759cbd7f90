"""A sample on which a form has to prove itself: what may come, and above all what lies where the label turns.

Seeded, so that one model has one sample. Rows are what validation lets through: dicts from field name to JSON value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.manifest import CategoryProfile, FieldProfile, InputField, Manifest, NumberProfile
from app.pipelines.base import Row
from app.pipelines.rows import LARGEST_FLOAT, LARGEST_INTEGER
from app.runtimes.politeness import working_clock
from app.runtimes.sample_texts import draw_texts, texts_at_the_boundary
from app.runtimes.thresholds import raw_thresholds

_SEED = 20_260_101
_PAIRS = 16
_HALVINGS = 60
_KEPT_EVERY = 6
_OUTSIDE = 0.25
_WIDE = 1e6

Labels = Callable[[Sequence[Row]], list[Any]]


@dataclass(frozen=True, slots=True)
class Asked:
    """How large the sample shall be, and how long the search for boundaries may take, in seconds."""

    rows: int
    seconds: float


def draw_sample(manifest: Manifest, estimator: Any, labels: Labels, asked: Asked) -> list[Row]:
    """The golden rows, rows of all kinds, and rows on both sides of where `labels` turn."""
    rng = np.random.default_rng(_SEED)
    golden: list[Row] = [row.inputs for row in manifest.golden.rows]
    (first, *_) = fields = manifest.fields
    if manifest.artefact.container == "texts":
        texts = [str(row[first.name]) for row in golden]
        drawn = draw_texts(estimator, texts, rng, asked.rows)
        deadline = working_clock() + asked.seconds
        turning = texts_at_the_boundary(
            [*texts, *drawn], lambda found: labels([{first.name: text} for text in found]), rng, deadline
        )
        most = first.max_length
        return [*golden, *({first.name: text[:most]} for text in (*drawn, *turning) if text.strip(" \t\n\r"))]
    profile = manifest.profile.inputs
    drawn_rows = _drawn(fields, profile, golden, rng, asked.rows)
    at_thresholds = _at_thresholds(fields, estimator, golden, rng, asked.rows)
    turning_rows = _where_labels_turn([*golden, *drawn_rows], fields, labels, asked.seconds)
    return [*golden, *drawn_rows, *at_thresholds, *turning_rows]


def _drawn(
    fields: Sequence[InputField], profile: Mapping[str, FieldProfile], golden: Sequence[Row], rng: Any, count: int
) -> list[Row]:
    """Half of them any combination of what each field may be; half a golden row with one field changed."""
    columns = {field.name: _values(field, profile.get(field.name), rng, count) for field in fields}
    rows: list[Row] = [{name: column[i] for name, column in columns.items()} for i in range(count)]
    for i in range(1, count, 2):
        name = fields[int(rng.integers(len(fields)))].name
        rows[i] = {**golden[i % len(golden)], name: rows[i][name]}
    return rows


def _values(field: InputField, profile: FieldProfile | None, rng: Any, count: int) -> list[Any]:
    match field.dtype:
        case "category":
            found = [field.categories[i] for i in rng.integers(len(field.categories or ()), size=count)]  # type: ignore[index]
        case "boolean":
            found = [bool(i) for i in rng.integers(2, size=count)]
        case "text":
            known = list(profile.counts) if isinstance(profile, CategoryProfile) else []
            words = [*known, "a", "Zürich", "42", str(field.example or "an example")]
            found = [words[i] for i in rng.integers(len(words), size=count)]
        case _:
            found = _numbers(field, profile, rng, count)
    if field.missing == "allow":
        found = [None if gap else value for value, gap in zip(found, rng.random(count) < 0.1, strict=True)]  # noqa: PLR2004
    return found


def _numbers(field: InputField, profile: FieldProfile | None, rng: Any, count: int) -> list[Any]:
    """Between the profile's quantiles, at its edges, somewhat outside the range, far outside it, and zero."""
    edges = profile.edges if isinstance(profile, NumberProfile) else ()
    low, high = field.minimum or 0.0, field.maximum if field.maximum is not None else 1.0
    at = np.array(edges or (low, high), dtype=np.float64)
    kind = rng.random(count)
    inside = np.interp(rng.random(count), np.linspace(0.0, 1.0, len(at)), at) if len(at) > 1 else np.full(count, at[0])
    margin = (at[-1] - at[0]) * _OUTSIDE or 1.0
    outside = rng.uniform(at[0] - margin, at[-1] + margin, count)
    far = rng.choice([-_WIDE, 0.0, _WIDE], size=count) * (abs(at[-1]) + 1.0)
    choices = [inside, rng.choice(at, size=count), outside, far]
    values = np.select([kind < 0.6, kind < 0.8, kind < 0.97], choices[:3], default=choices[3])  # noqa: PLR2004
    if field.dtype == "integer":
        return [int(value) for value in np.clip(np.round(values), -LARGEST_INTEGER, LARGEST_INTEGER)]
    return [float(value) for value in np.clip(values, -LARGEST_FLOAT, LARGEST_FLOAT)]


def _at_thresholds(
    fields: Sequence[InputField], estimator: Any, golden: Sequence[Row], rng: Any, count: int
) -> list[Row]:
    """Golden rows with one number exactly at a tree's threshold, or next to it: as a double, and as a float.

    Trees compare floats with doubles: what is rounded, and which way, decides the branch.
    """
    places = raw_thresholds(estimator)
    if not places:
        return []
    chosen = rng.permutation(len(places))[: max(count // 5, 1)]
    rows: list[Row] = []
    for number, place in enumerate(chosen):
        column, threshold = places[place]
        if fields[column].dtype != "float":
            continue
        single = np.float32(threshold)
        nexts = [threshold, np.nextafter(threshold, -np.inf), np.nextafter(threshold, np.inf)]
        nexts += [single, np.nextafter(single, np.float32(-np.inf)), np.nextafter(single, np.float32(np.inf))]
        base = golden[number % len(golden)]
        rows.extend({**base, fields[column].name: float(value)} for value in nexts if abs(value) <= LARGEST_FLOAT)
    return rows


def _where_labels_turn(rows: Sequence[Row], fields: Sequence[InputField], labels: Labels, seconds: float) -> list[Row]:
    """Halve the way between rows of different labels until numbers meet.

    The ends of the ways are kept every few steps: the last ones are so close to a boundary that rounding decides.
    """
    deadline = working_clock() + seconds
    numeric = [field for field in fields if field.dtype in ("float", "integer")]
    found = labels(rows)
    lows, highs = _pairs(rows, found, [field.name for field in numeric])
    if not lows:
        return []
    wanted = labels(lows)
    kept = [i for i, label in enumerate(labels(highs)) if label != wanted[i]]
    lows, highs, wanted = ([part[i] for i in kept] for part in (lows, highs, wanted))
    ends: list[Row] = []
    for step in range(_HALVINGS):
        middles = [_middle(low, high, numeric) for low, high in zip(lows, highs, strict=True)]
        if not middles or working_clock() > deadline:
            break
        for i, label in enumerate(labels(middles)):
            (lows if label == wanted[i] else highs)[i] = middles[i]
        if step % _KEPT_EVERY == 0:
            ends += [*lows, *highs]
    return [*ends, *lows, *highs]


def _pairs(rows: Sequence[Row], found: Sequence[Any], names: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """Rows of different labels that differ in numbers alone: the second takes over what is no number."""
    lows: list[Row] = []
    highs: list[Row] = []
    for position, row in enumerate(rows):
        other = next(
            (
                r
                for r, label in zip(rows[position + 1 :], found[position + 1 :], strict=True)
                if label != found[position]
            ),
            None,
        )
        if other is not None and len(lows) < _PAIRS and None not in (*row.values(), *other.values()):
            lows.append(row)
            highs.append({**row, **{name: other[name] for name in names if name in other}})
    return lows, highs


def _middle(low: Row, high: Row, numeric: Sequence[InputField]) -> Row:
    changed: dict[str, Any] = {}
    for field in numeric:
        one, other = low.get(field.name), high.get(field.name)
        if one is not None and other is not None:
            changed[field.name] = (one + other) // 2 if field.dtype == "integer" else one / 2 + other / 2
    return {**low, **changed}
