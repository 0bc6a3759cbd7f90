"""Compile, with proof: bring an estimator into other forms, keep those that answer the same, and the fastest of them.

A form is used only if it agrees with scikit-learn on the golden rows and on a sample that lies where labels turn:
every label, and every number within the manifest's tolerance. Which form answers depends on the rows of a call.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle, islice
from typing import Any

import structlog

from app.manifest import Container, Manifest
from app.pipelines import Pipeline
from app.pipelines.base import Row
from app.runtimes.base import Runtime
from app.runtimes.by_size import BySize, Stage
from app.runtimes.cost import Cost, least, measure_cost
from app.runtimes.folding import NotFoldable, kind_of
from app.runtimes.parity import Expected, compare, expect
from app.runtimes.politeness import breathe
from app.runtimes.sample import Asked, draw_sample
from app.runtimes.sklearn import SklearnRuntime
from app.runtimes.threads import walk_estimators

log = structlog.get_logger(__name__)

SIZES = (1, 64, 1000)
# Rows that are drawn, fewer where scikit-learn would take longer than this for them; and how long the search for
# boundaries may take, which most models need a part of.
_ROWS, _FEW_ROWS = 256, 64
_SAMPLE_SECONDS = 0.5
_SEARCH_SECONDS = 0.15
_CHUNK = 64
# The longest call of each round of measuring.
_ROUNDS = (0.1, 0.02, 0.02)
# A form has to be so much faster before another one is left for it: a switch costs its readers something, too.
_WORTH_A_SWITCH = 0.9
# Where one form may give way to another. Beyond what is measured nothing changes: a line through noise says nothing.
_SWITCHES = (1, 2, 4, 8, 16, 32, 64, 100, 150, 200, 300, 400, 500, 600, 700, 800, 1000)

Build = Callable[[SklearnRuntime], Runtime]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A form that may fit: its name, how it is built, for which containers, and which packages it needs, if optional.

    A `last_resort` is tried only where no other form fits.
    """

    name: str
    build: Build
    containers: tuple[Container, ...]
    packages: tuple[str, ...] = ()
    last_resort: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """What became of one form: `chosen_for` says for which numbers of rows it answers, `reason` why it does not.

    `microseconds` are those for a row, by the number of rows in a call. A catalog shows all this, so that a reason
    holds no text of a foreign exception.
    """

    form: str
    chosen_for: str = ""
    microseconds: Mapping[int, float] = field(default_factory=dict)
    largest_difference: float | None = None
    labels_equal: bool | None = None
    reason: str = ""


# Which form answers for up to how many rows; the last has no end.
Plan = tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What was found out about the very same artefact before: which forms answer, why, and what a call costs."""

    plan: Plan
    forms: tuple[Form, ...]
    cost: Cost


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """The runtime that answers, a report on every form that was tried, and what was decided."""

    runtime: Runtime
    forms: tuple[Form, ...]
    plan: Plan


def _lazily(module: str, function: str) -> Build:
    """A form's libraries are imported when an estimator asks for it, and not by every server."""

    def build(reference: SklearnRuntime) -> Runtime:
        form: Runtime = getattr(import_module(f"app.runtimes.{module}"), function)(reference)
        return form

    return build


_build_onnx = _lazily("onnx", "build_onnx")


def _onnx(reference: SklearnRuntime) -> Runtime:
    """Importing the converter costs 50 MB: not for code that it cannot know."""
    foreign = [inner for inner in walk_estimators(reference.estimator) if not kind_of(inner)]
    if foreign:
        raise NotFoldable(f"{type(foreign[0]).__name__} is none of scikit-learn's own")
    return _build_onnx(reference)


_TABLES: tuple[Container, ...] = ("matrix", "objects", "frame")
CANDIDATES = (
    Candidate("folded text", _lazily("linear_text", "build_text"), ("texts",)),
    Candidate("folded linear", _lazily("linear", "build_linear"), ("matrix", "objects")),
    Candidate("treelite", _lazily("trees", "build_trees"), _TABLES),
    Candidate("ONNX Runtime", _onnx, ("matrix",), packages=("onnxruntime", "skl2onnx"), last_resort=True),
)


@dataclass(frozen=True, slots=True)
class Compiling:
    """Which forms are tried; what is called when one has raised and scikit-learn answered; and what watches.

    With a `decision` nothing is tried: its forms are built.
    """

    fell_back: Callable[[], None] = lambda: None
    progress: Callable[[str], None] = lambda _: None
    candidates: Sequence[Candidate] = CANDIDATES
    decision: Decision | None = None


def compile_runtime(
    manifest: Manifest,
    pipeline: Pipeline,
    reference: SklearnRuntime,
    how: Compiling = Compiling(),
) -> Compiled:
    """Try each form; what fails or differs is a line of the report, and never an error."""
    if how.decision is not None and (decided := _as_decided(manifest, reference, how, how.decision)):
        return decided
    golden: list[Row] = [row.inputs for row in manifest.golden.rows]
    built, report = _built(manifest, reference, how.candidates)
    how.progress("drawing the sample")
    expected = _expected(manifest, pipeline, reference, golden) if built else None
    proven: list[tuple[Runtime, Form]] = []
    for form in built:
        assert expected is not None  # noqa: S101 -- drawn, since there is a form
        how.progress(f"comparing {form.name} on {len(expected.rows)} rows")
        outcome = _proven(form, expected, pipeline, manifest.golden.tolerance)
        if outcome.reason:
            report.append(outcome)
        else:
            proven.append((form, outcome))
    proven.append((reference, Form(reference.name)))
    how.progress("measuring")
    costs = _costs([form for form, _ in proven], pipeline, golden)
    stages = choose(costs, [form for form, _ in proven])
    lines = [_line(outcome, cost, form, stages) for (form, outcome), cost in zip(proven, costs, strict=True)]
    plan = tuple((most, form.name) for most, form in stages)
    return Compiled(_staged(stages, reference, how), (*lines[:-1], *report, lines[-1]), plan)


def _staged(stages: Sequence[Stage], reference: SklearnRuntime, how: Compiling) -> Runtime:
    if len(stages) == 1 and stages[0][1] is reference:
        return reference
    return BySize(stages, reference, how.fell_back)


def _as_decided(manifest: Manifest, reference: SklearnRuntime, how: Compiling, decision: Decision) -> Compiled | None:
    """None where a form that was decided for cannot be built here."""
    found: dict[str, Runtime] = {reference.name: reference}
    wanted = {name for _, name in decision.plan}
    for candidate in how.candidates:
        if not wanted <= found.keys():
            found.update({form.name: form for form in _built(manifest, reference, [candidate])[0]})
    if not wanted <= found.keys():
        log.warning("decision_not_followed", missing=sorted(wanted - found.keys()))
        return None
    stages = [(most, found[name]) for most, name in decision.plan]
    return Compiled(_staged(stages, reference, how), decision.forms, decision.plan)


def _built(
    manifest: Manifest, reference: SklearnRuntime, candidates: Sequence[Candidate]
) -> tuple[list[Runtime], list[Form]]:
    built: list[Runtime] = []
    report: list[Form] = []
    for candidate in candidates:
        if manifest.artefact.container not in candidate.containers or (built and candidate.last_resort):
            continue
        missing = [package for package in candidate.packages if find_spec(package) is None]
        if missing:
            report.append(Form(candidate.name, reason=f"not installed: {', '.join(missing)}"))
            continue
        try:
            built.append(candidate.build(reference))
        except NotFoldable as error:
            report.append(Form(candidate.name, reason=str(error)))
        except Exception as error:
            log.warning("form_not_built", form=candidate.name, exc_info=error)
            report.append(Form(candidate.name, reason=f"building it raised {type(error).__name__}"))
    return built, report


def _expected(manifest: Manifest, pipeline: Pipeline, reference: SklearnRuntime, golden: Sequence[Row]) -> Expected:
    started = time.perf_counter()
    reference.predict(pipeline.preprocess(golden), len(golden))
    seconds_a_row = (time.perf_counter() - started) / len(golden)
    count = _ROWS if seconds_a_row * _ROWS < _SAMPLE_SECONDS else _FEW_ROWS

    def labels(rows: Sequence[Row]) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            breathe()
            answer = reference.predict(pipeline.preprocess(chunk), len(chunk))
            found.extend([0] * len(chunk) if answer.classes is None else answer.classes)
        return found

    sample = draw_sample(manifest, reference.estimator, labels, Asked(count, _SEARCH_SECONDS))
    return expect(sample, pipeline.preprocess, reference, reference.estimator)


def _proven(form: Runtime, expected: Expected, pipeline: Pipeline, tolerance: float) -> Form:
    try:
        verdict = compare(form, expected, pipeline.preprocess, tolerance)
    except Exception as error:
        log.warning("form_raised", form=form.name, exc_info=error)
        return Form(form.name, reason=f"it raised {type(error).__name__}")
    return Form(
        form.name,
        largest_difference=verdict.largest_difference if math.isfinite(verdict.largest_difference) else None,
        labels_equal=verdict.labels_equal,
        reason=verdict.reason,
    )


def _costs(forms: Sequence[Runtime], pipeline: Pipeline, golden: Sequence[Row]) -> list[Cost]:
    """In rounds, some time apart: a machine that was busy for a moment must not decide for as long as this runs."""
    rounds = [[_cost(form, pipeline, golden, longest) for form in forms] for longest in _ROUNDS]
    return [least(measured) for measured in zip(*rounds, strict=True)]


def _cost(form: Runtime, pipeline: Pipeline, golden: Sequence[Row], longest: float) -> Cost:
    """Of the form alone: what stands around it is the same for all."""
    inputs: dict[int, Any] = {}

    def call(rows: int) -> None:
        form.predict(inputs[rows], rows)

    def prepare(rows: int) -> None:
        inputs[rows] = pipeline.preprocess(list(islice(cycle(golden), rows)))

    return measure_cost(call, prepare=prepare, longest=longest)


def choose(costs: Sequence[Cost], forms: Sequence[Runtime]) -> list[Stage]:
    """The fastest form for each number of rows, as (most rows, form); the last has no end."""
    stages: list[Stage] = []
    chosen = None
    for rows in _SWITCHES:
        seconds = [cost.seconds(rows) for cost in costs]
        best = min(range(len(forms)), key=seconds.__getitem__)
        if chosen is None or seconds[best] < seconds[chosen] * _WORTH_A_SWITCH:
            chosen = best
        if stages and stages[-1][1] is forms[chosen]:
            stages.pop()
        stages.append((rows, forms[chosen]))
    return stages


def _line(outcome: Form, cost: Cost, form: Runtime, stages: Sequence[Stage]) -> Form:
    figures = {rows: cost.seconds(rows) / rows * 1e6 for rows in SIZES}
    ranges, fewest = [], 1
    for position, (most, chosen) in enumerate(stages):
        last = position == len(stages) - 1
        if chosen is form:
            ranges.append(
                "all" if last and fewest == 1 else f"{fewest} rows and more" if last else f"{fewest} to {most} rows"
            )
        fewest = most + 1
    reason = "" if ranges else "another form is faster"
    return replace(outcome, microseconds=figures, chosen_for=", ".join(ranges), reason=reason)
