"""The gate: what there is to say for and against a candidate before it answers in the champion's place.

Five checks, each with its figures. A check fails only for a reason that it can show; where there is not enough to say,
it says that, and holds nobody up. Nothing is decided or changed here.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any

from app.errors import FieldError, VersionRefused
from app.inference.execution import answer_together
from app.manifest import InputField, Label, Manifest
from app.pipelines.base import Row
from app.registry.golden import check_golden_rows
from app.release.evidence import Check, CheckName, Evidence, Limits, conclude
from app.release.replay import Differences, IsWhole, Pace, is_same, rescore
from app.release.statistics import sign_test, wilson
from app.storage.queries import LoggedPrediction

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

_SIZES = (1, 64)
_REPEATS = 25
_LATENCY_SECONDS = 5.0
_MOST_LATENCY_ROWS = 256
_FAST_MS = 1.0
# Of the wrong things in a list, as many are told.
_MOST_TOLD = 5


@dataclass(frozen=True, slots=True)
class Champion:
    """What the candidate is compared with: its manifest, and itself unless it can no longer be loaded."""

    manifest: Manifest
    model: "LoadedModel | None"


@dataclass(frozen=True, slots=True)
class Log:
    """What is on record: the newest rows that a version answered, at most so many, and which of them are whole."""

    newest: Callable[[int, int], Iterable[LoggedPrediction]]
    is_whole: IsWhole


def examine(
    candidate: "LoadedModel", champion: Champion | None, log: Log, limits: Limits, pace: Pace | None = None
) -> Evidence:
    """All checks. Without a champion, there are only the candidate's own golden rows to ask."""
    pace = pace or Pace()
    asked: list[LoggedPrediction] = []
    if champion is None:
        nothing: tuple[CheckName, ...] = ("schema", "replay", "latency", "accuracy")
        unknown = [Check(check=name, passed=None, detail="there is no champion to compare with") for name in nothing]
        checks = [check_golden(candidate, None), *unknown]
    else:
        differences = _replay(candidate, champion, log, limits, pace, asked)
        rows = [logged.inputs for logged in asked[:_MOST_LATENCY_ROWS]]
        rows += [golden.inputs for golden in champion.manifest.golden.rows]
        checks = [
            check_schema(candidate.manifest, champion.manifest),
            check_golden(candidate, champion),
            check_replay(differences, limits),
            check_latency(candidate, champion, rows, limits, pace),
            check_accuracy(differences, own_accuracy(log.newest(candidate.version, limits.rows)), limits),
        ]
    return conclude(
        checks,
        model=candidate.name,
        candidate=candidate.version,
        champion=champion.manifest.version if champion else None,
        at=datetime.now(UTC),
        limits=limits,
    )


def check_schema(candidate: Manifest, champion: Manifest) -> Check:
    """Callers of the champion can go on: what it takes is taken, and the answer has the same form."""
    wrong = [*_inputs_lost(candidate, champion), *_outputs_changed(candidate, champion)]
    if wrong:
        return Check(check="schema", passed=False, detail=_told(wrong), figures={"problems": wrong})
    return Check(check="schema", passed=True, detail="takes what the champion takes, answers in the same form")


def check_golden(candidate: "LoadedModel", champion: Champion | None) -> Check:
    """Its own golden rows come out as recorded, and it takes those of the champion."""
    golden = candidate.manifest.golden.rows
    try:
        check_golden_rows(candidate.manifest, candidate.pipeline, candidate.runtime)
    except VersionRefused as error:
        return Check(check="golden", passed=False, detail=error.refusal.detail, figures={"own": len(golden)})
    theirs = champion.manifest.golden.rows if champion else ()
    valid = candidate.pipeline.validate([row.inputs for row in theirs])
    wrong = [f"row {error.row}: {error.field or ''} {error.detail}" for error in valid if isinstance(error, FieldError)]
    figures = {"own": len(golden), "champions": len(theirs), "champions_refused": len(wrong)}
    if wrong:
        detail = f"refuses golden rows of the champion: {_told(wrong)}"
        return Check(check="golden", passed=False, detail=detail, figures=figures)
    detail = f"{len(golden)} of its own as recorded; takes {len(theirs)} of the champion's"
    return Check(check="golden", passed=True, detail=detail, figures=figures)


def check_replay(differences: Differences, limits: Limits) -> Check:
    """What the champion answered, the candidate answers too, and mostly in the same way."""
    figures = differences.figures()
    compared, equal = differences.compared, differences.equal
    if differences.broken > limits.most_broken:
        detail = f"refuses {differences.refused} and fails on {differences.failed} rows that the champion answered"
        return Check(check="replay", passed=False, detail=detail, figures=figures)
    if compared < limits.least_rows:
        hidden = f"; of {differences.unasked} the log has not all inputs" if differences.unasked else ""
        detail = f"{compared} comparable answers on record, fewer than {limits.least_rows}{hidden}"
        return Check(check="replay", passed=None, detail=detail, figures=figures)
    if differences.numbers_then:
        shift = figures["shift"]
        if shift is None:
            detail = "the champion answers the same number always, the candidate does not"
            return Check(check="replay", passed=None, detail=detail, figures=figures)
        detail = f"95 % of {compared:,} answers within {shift['p95']:.3g} standard deviations of the champion's"
        return Check(check="replay", passed=shift["p95"] <= limits.most_shift, detail=detail, figures=figures)
    detail = f"{equal:,} of {compared:,} labels equal"
    return Check(check="replay", passed=equal >= limits.least_equal * compared, detail=detail, figures=figures)


def check_latency(
    candidate: "LoadedModel", champion: Champion, inputs: Sequence[dict[str, Any]], limits: Limits, pace: Pace
) -> Check:
    """Side by side on the same rows, in turns, so that whatever else the machine does meets both alike."""
    both = _valid_for_both(candidate, champion, inputs)
    if champion.model is None or not both:
        why = "the champion cannot be loaded" if champion.model is None else "no row is valid for both"
        return Check(check="latency", passed=None, detail=why)
    figures: dict[str, Any] = {}
    told, slow = [], False
    for size in _SIZES:
        theirs, own = _medians(champion.model, candidate, both, size, pace)
        ratio = own / theirs if theirs else 1.0
        figures[f"rows_{size}"] = {"champion_ms": theirs, "candidate_ms": own, "ratio": ratio}
        told.append(f"{own:.3g} ms for {size} (champion {theirs:.3g})")
        slow |= ratio > limits.most_latency_ratio and own / size >= _FAST_MS
    return Check(check="latency", passed=not slow, detail=", ".join(told), figures=figures)


def check_accuracy(differences: Differences, own: dict[str, Any] | None, limits: Limits) -> Check:
    """On the replayed rows of which the truth is known: it fails when the candidate is worse, and not by chance.

    `own` is how right the candidate was where it answered callers itself.
    """
    pairs = differences.pairs
    figures: dict[str, Any] = {"replayed": pairs.figures(), "candidate_in_service": own}
    if pairs.count < limits.least_pairs:
        detail = f"feedback on {pairs.count} replayed rows, fewer than {limits.least_pairs}"
        return Check(check="accuracy", passed=None, detail=detail, figures=figures)
    p_value = sign_test(pairs.worse, pairs.better)
    worse = pairs.worse > pairs.better and p_value < limits.significance
    detail = (
        f"better on {pairs.better}, worse on {pairs.worse} of {pairs.count:,} rows with feedback (p = {p_value:.3g})"
    )
    return Check(check="accuracy", passed=not worse, detail=detail, figures=figures)


def own_accuracy(answered: Iterable[LoggedPrediction]) -> dict[str, Any] | None:
    """Of what a version has answered callers, as far as the truth is known; None where nothing is."""
    known = [(row.output, row.feedback.truth) for row in answered if row.feedback is not None and row.error is None]
    if not known:
        return None
    if all(isinstance(output, float) for output, _ in known):
        return {"rows": len(known), "mean_absolute_error": sum(abs(o - t) for o, t in known) / len(known)}
    return wilson(sum(is_same(output, truth) for output, truth in known), len(known))


def _replay(
    candidate: "LoadedModel",
    champion: Champion,
    log: Log,
    limits: Limits,
    pace: Pace,
    asked: list[LoggedPrediction],
) -> Differences:
    """As far as the time allows; what could be asked is also put into `asked`."""
    differences = Differences()
    until = time.monotonic() + limits.seconds
    for rescored in rescore(candidate, log.newest(champion.manifest.version, limits.rows), log.is_whole, pace):
        differences.add(rescored)
        if rescored.outcome is not None:
            asked.append(rescored.logged)
        if time.monotonic() > until:
            break
    return differences


def _inputs_lost(candidate: Manifest, champion: Manifest) -> Iterator[str]:
    takes = {field.name: field for field in candidate.fields}
    for field in champion.fields:
        if field.name not in takes:
            yield f"{field.name} is taken no more"
        else:
            yield from _narrowed(takes[field.name], field)
    known = {field.name for field in champion.fields}
    for field in candidate.fields:
        if field.name not in known and field.missing != "allow":
            yield f"{field.name} is new and must be given"


def _narrowed(field: InputField, was: InputField) -> Iterator[str]:
    """What was valid for a field and is not any more."""
    widened = (was.dtype, field.dtype) == ("integer", "float")
    if field.dtype != was.dtype and not widened:
        yield f"{field.name} was {was.dtype} and is {field.dtype}"
        return
    if was.missing == "allow" and field.missing != "allow":
        yield f"{field.name} could be missing"
    lost = _missing_labels(was.categories or (), field.categories or ())
    if lost:
        yield f"{field.name} lacks the categories {', '.join(map(str, lost))}"
    if was.max_length is not None and (field.max_length or 0) < was.max_length:
        yield f"{field.name} could have {was.max_length} characters, and may have {field.max_length}"


def _outputs_changed(candidate: Manifest, champion: Manifest) -> Iterator[str]:
    now, was = candidate.outputs, champion.outputs
    if candidate.task != champion.task:
        yield f"the task was {champion.task} and is {candidate.task}"
    if lost := _missing_labels(was.labels, now.labels):
        yield f"the labels {', '.join(map(str, lost))} are gone"
    if new := _missing_labels(now.labels, was.labels):
        yield f"the labels {', '.join(map(str, new))} are new"
    if was.probabilities and not now.probabilities:
        yield "there are no probabilities any more"


def _missing_labels(some: Sequence[Label], others: Sequence[Label]) -> list[Label]:
    """Those that the others lack; true, 1 and "1" are three."""
    return [label for label in some if not any(is_same(label, other) for other in others)]


def _valid_for_both(
    candidate: "LoadedModel", champion: Champion, inputs: Sequence[dict[str, Any]]
) -> list[tuple[Row, Row]]:
    if champion.model is None:
        return []
    pairs = zip(champion.model.pipeline.validate(inputs), candidate.pipeline.validate(inputs), strict=True)
    return [(a, b) for a, b in pairs if not isinstance(a, FieldError) and not isinstance(b, FieldError)]


def _medians(
    champion: "LoadedModel", candidate: "LoadedModel", rows: Sequence[tuple[Row, Row]], size: int, pace: Pace
) -> tuple[float, float]:
    """Milliseconds of a call with so many rows, of each; the first call of each does not count."""
    theirs, own = [], []
    until = time.monotonic() + _LATENCY_SECONDS
    for repeat in range(_REPEATS + 1):
        some = [rows[(repeat * size + place) % len(rows)] for place in range(size)]
        timings = {0: 0.0, 1: 0.0}
        for which in (0, 1) if repeat % 2 else (1, 0):
            timings[which] = _milliseconds((champion, candidate)[which], [pair[which] for pair in some])
        pace.rest(sum(timings.values()) / 1000)
        if repeat:
            theirs.append(timings[0])
            own.append(timings[1])
        if repeat and time.monotonic() > until:
            break
    return median(theirs), median(own)


def _milliseconds(model: "LoadedModel", rows: Sequence[Row]) -> float:
    """What raises has its time as well; whether it may raise is another check's question."""
    started = time.perf_counter()
    with contextlib.suppress(Exception):  # an estimator may raise anything
        answer_together(model, rows)
    return (time.perf_counter() - started) * 1000


def _told(wrong: Sequence[str]) -> str:
    more = f"; and {len(wrong) - _MOST_TOLD} more" if len(wrong) > _MOST_TOLD else ""
    return "; ".join(wrong[:_MOST_TOLD]) + more
