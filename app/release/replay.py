"""Replay: logged requests are put to another version, and what it answers is compared with what was answered then.

`rescore` asks, `Differences` counts; the gate of a promotion and the command `replay` are made of both. Rows come one
after the other, and of each only numbers are kept, so that a window may be long.
"""

import re
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

from app.errors import FieldError, VersionRefused
from app.inference.execution import Outcome, answer_apart
from app.manifest import InputField, LogRules
from app.pipelines.base import Prediction, Row
from app.registry.sources import DirectorySource
from app.release.statistics import shift, sign_test, spread, wilson
from app.storage import queries
from app.storage.database import Database
from app.storage.queries import LoggedPrediction, Run

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

# Whether the inputs of a logged row are all there.
IsWhole = Callable[[LoggedPrediction], bool]

# A call is to be over before anybody who predicts meanwhile has waited long.
_CALL_SECONDS = 0.01
_MOST_TOGETHER = 64
_PAGE = 200
_HASHED = re.compile(r"hmac-sha256:[0-9a-f]{64}")
_MODEL_FAILED = "model_failed"


class Pace:
    """Works for a share of the time and rests for the others, beside a service that has callers."""

    def __init__(self, share: float = 1.0) -> None:
        self._rest = 1 / share - 1

    def rest(self, worked: float) -> None:
        """As long as so many seconds of work ask for."""
        if self._rest:
            time.sleep(worked * self._rest)


@dataclass(frozen=True, slots=True)
class Rescored:
    """A logged row and what another version makes of it: None where it could not be asked.

    `seconds` is how long that took where the row was asked alone.
    """

    logged: LoggedPrediction
    outcome: Outcome | None
    seconds: float | None = None


def steps(database: Database) -> Run:
    """Each statement on a connection of its own: no transaction lasts as long as a replay."""

    def run(statement: Any) -> Any:
        with database.reading() as connection:
            return queries.on(connection)(statement)

    return run


def newest(run: Run, model: str, version: int, most: int) -> Iterator[LoggedPrediction]:
    """The newest `most` rows that a version answered, in bounded steps."""
    after: UUID | None = None
    while most > 0:
        page = queries.page(run, queries.Filters(model=model, version=version), after=after, size=min(_PAGE, most))
        yield from page.predictions
        most, after = most - len(page.predictions), page.after
        if after is None:
            return


def wholeness(source: DirectorySource, model: str) -> IsWhole:
    """Tells rows that can be asked again from those of which `log.json` let the log keep less, now or then."""
    try:
        rules = source.log_rules(model)
    except VersionRefused:
        rules = LogRules()
    known: dict[int, tuple[InputField, ...]] = {}

    def is_whole(logged: LoggedPrediction) -> bool:
        if logged.version not in known:
            known[logged.version] = _fields(source, model, logged.version)
        return all(_is_there(logged.inputs, field, rules) for field in known[logged.version])

    return is_whole


def rescore(
    model: "LoadedModel", logged: Iterable[LoggedPrediction], is_whole: IsWhole, pace: Pace | None = None
) -> Iterator[Rescored]:
    """Ask the version again, a few rows at a time, the first of them alone so as to see how long one takes.

    Rows on which the model failed then are not asked: there is nothing to compare with.
    """
    size = min(_MOST_TOGETHER, model.cost.rows_within(_CALL_SECONDS))
    pace = pace or Pace()
    rows = iter(logged)
    while chunk := list(islice(rows, size)):
        started = time.perf_counter()
        yield from _rescored(model, chunk, is_whole)
        pace.rest(time.perf_counter() - started)


class Differences:
    """What came of the rows of a replay, one after the other."""

    def __init__(self) -> None:
        self.rows = 0
        self.unasked = 0  # inputs that the log did not keep
        self.failed_then = 0
        self.refused = 0
        self.failed = 0
        self.equal = 0
        self.flips: Counter[tuple[Any, Any]] = Counter()
        self.numbers_then, self.numbers_now = array("d"), array("d")
        self.score_differences = array("d")
        self.ms_then, self.ms_now = array("d"), array("d")
        self.pairs = Pairs()

    @property
    def compared(self) -> int:
        """Rows with an answer then and one now."""
        return self.rows - self.unasked - self.failed_then - self.broken

    @property
    def broken(self) -> int:
        """Rows that were answered then, and are refused or fail now."""
        return self.refused + self.failed

    def add(self, rescored: Rescored) -> bool:
        """Count one more; whether it came out otherwise than it was."""
        logged, outcome = rescored.logged, rescored.outcome
        self.rows += 1
        self.ms_then.append(logged.latency_ms)
        if rescored.seconds is not None:
            self.ms_now.append(rescored.seconds * 1000)
        if logged.error is not None:
            self.failed_then += 1
        elif outcome is None:
            self.unasked += 1
        elif isinstance(outcome, FieldError):
            self.failed += outcome.code == _MODEL_FAILED
            self.refused += outcome.code != _MODEL_FAILED
            return True
        else:
            return self._compare(logged, outcome)
        return False

    def figures(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        moved = shift(self.numbers_then, self.numbers_now)
        return {
            "rows": self.rows,
            "unasked": self.unasked,
            "failed_then": self.failed_then,
            "refused": self.refused,
            "failed": self.failed,
            "compared": self.compared,
            "equal": self.equal,
            "flips": [
                {"was": was, "is": now, "rows": rows}
                for (was, now), rows in sorted(self.flips.items(), key=lambda item: -item[1])
            ],
            "score_difference": spread(self.score_differences),
            "shift": None if moved is None else {"median": moved[0], "p95": moved[1]},
            "number_difference": spread([b - a for a, b in zip(self.numbers_then, self.numbers_now, strict=True)]),
            "latency_ms": {"then": spread(self.ms_then), "now": spread(self.ms_now)},
            "feedback": self.pairs.figures(),
        }

    def _compare(self, logged: LoggedPrediction, now: Prediction) -> bool:
        was, value = logged.output, now.value
        same = is_same(was, value)
        self.equal += same
        if logged.label is None and isinstance(value, int | float) and isinstance(was, int | float):
            self.numbers_then.append(was)
            self.numbers_now.append(value)
        elif not same:
            self.flips[str(was), str(value)] += 1
        if now.probabilities is not None and logged.probabilities is not None and logged.label is not None:
            # The label of then, so that a flip counts with how far the score fell, and not with the new label's own.
            then = logged.probabilities.get(logged.label)
            if then is not None:
                self.score_differences.append(now.probabilities.get(logged.label, 0.0) - then)
        if logged.feedback is not None:
            self.pairs.add(logged.feedback.truth, was, value)
        return not same


class Pairs:
    """Both versions' answers to the rows of which the truth is known."""

    def __init__(self) -> None:
        self.both_right = self.only_then = self.only_now = self.both_wrong = 0
        self.errors_then, self.errors_now = array("d"), array("d")

    @property
    def count(self) -> int:
        """How many rows."""
        labels = self.both_right + self.only_then + self.only_now + self.both_wrong
        return labels + len(self.errors_then)

    @property
    def worse(self) -> int:
        """On how many the answer of then is the better one."""
        return self.only_then + sum(a < b for a, b in zip(self.errors_then, self.errors_now, strict=True))

    @property
    def better(self) -> int:
        """On how many the answer of now is."""
        return self.only_now + sum(a > b for a, b in zip(self.errors_then, self.errors_now, strict=True))

    def add(self, truth: Any, then: Any, now: Any) -> None:
        """Labels are right or wrong; numbers are so far off."""
        if isinstance(now, float) and isinstance(truth, int | float) and isinstance(then, int | float):
            self.errors_then.append(abs(then - truth))
            self.errors_now.append(abs(now - truth))
            return
        match is_same(truth, then), is_same(truth, now):
            case True, True:
                self.both_right += 1
            case True, False:
                self.only_then += 1
            case False, True:
                self.only_now += 1
            case _:
                self.both_wrong += 1

    def figures(self) -> dict[str, Any]:
        """Accuracy, or mean absolute error, of both; and how likely such a difference is by chance."""
        worse, better = self.worse, self.better
        base = {"rows": self.count, "worse": worse, "better": better, "p_value": sign_test(worse, better)}
        if len(self.errors_then):
            return {**base, "mean_absolute_error": {"then": mean(self.errors_then), "now": mean(self.errors_now)}}
        then = wilson(self.both_right + self.only_then, self.count)
        return {**base, "accuracy": {"then": then, "now": wilson(self.both_right + self.only_now, self.count)}}


def mean(values: "array[float]") -> float | None:
    """None without any."""
    return sum(values) / len(values) if values else None


def is_same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same: 1 is neither true nor "1", and for numbers 1 is 1.0."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def _rescored(model: "LoadedModel", chunk: list[LoggedPrediction], is_whole: IsWhole) -> list[Rescored]:
    asked = [logged for logged in chunk if logged.error is None and is_whole(logged)]
    validated = list(zip(asked, model.pipeline.validate([logged.inputs for logged in asked]), strict=True))
    valid = [(logged, row) for logged, row in validated if not isinstance(row, FieldError)]
    outcomes, seconds = _answers(model, [row for _, row in valid])
    found: dict[UUID, Outcome] = {logged.id: row for logged, row in validated if isinstance(row, FieldError)}
    found |= {logged.id: outcome for (logged, _), outcome in zip(valid, outcomes, strict=True)}
    alone = valid[0][0].id if valid else None
    return [Rescored(logged, found.get(logged.id), seconds if logged.id == alone else None) for logged in chunk]


def _answers(model: "LoadedModel", rows: list[Row]) -> tuple[list[Outcome], float | None]:
    """Of the first row alone, with its time, and of the others together."""
    if not rows:
        return [], None
    started = time.perf_counter()
    first = answer_apart(model, rows[:1])
    seconds = time.perf_counter() - started
    return [*first, *(answer_apart(model, rows[1:]) if len(rows) > 1 else [])], seconds


def _fields(source: DirectorySource, model: str, version: int) -> tuple[InputField, ...]:
    try:
        return source.manifest(model, version).fields
    except VersionRefused:  # it is gone: what it took is not known
        return ()


def _is_there(inputs: dict[str, Any], field: InputField, rules: LogRules) -> bool:
    """A dropped field is absent; but so is one that the caller left out where that is allowed."""
    if field.name not in inputs:
        return field.missing == "allow" and rules.fields.get(field.name, rules.default) != "drop"
    value = inputs[field.name]
    return not (isinstance(value, str) and _HASHED.fullmatch(value))
