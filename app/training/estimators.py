"""From an estimator and rows that go into it to a version: what `publish` needs, and nobody has said."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from app.errors import PublishRefused
from app.manifest import Evaluation, Manifest, Task
from app.training.csv_files import CsvFile
from app.training.estimator_files import feature_names
from app.training.given_rows import GivenRows
from app.training.measure import classification_metrics, regression_metrics
from app.training.options import Options
from app.training.publish import publish

_MEASURED = "asked once; whether it was fitted on these very rows is not known"
_FEW = 3


@dataclass(frozen=True, eq=False)
class Given:
    """A fitted estimator and rows for it, with the targets of the rows where they are known.

    `texts`: it takes a list of texts, and not a table.
    """

    estimator: Any
    rows: GivenRows
    targets: Sequence[Any] | None
    task: Task
    texts: bool


def publish_estimator(name: str, given: Given, *, description: str, version: int | None, options: Options) -> Manifest:
    """Publish it with the rows as its X; its own answers are y where there are no targets. Raises PublishRefused."""
    rows = given.rows
    options = replace(
        options, fields=rows.fields, field_names=tuple(rows.columns), data=rows.description, data_sha256=rows.sha256
    )
    _check_width(given)
    X = rows.texts if given.texts else _table(given)
    answers = None if isinstance(X, list) and not given.texts else _answers(given.estimator, X)
    if given.targets is not None and answers is not None:
        options = replace(options, evaluations=(_evaluation(given, X, answers),))
    y = answers if given.targets is None else given.targets
    if y is None:
        raise PublishRefused("without targets it is asked for its answers, which needs pandas here: name the --target")
    return publish(
        name, given.estimator, X, y, task=given.task, description=description, version=version, options=options
    )


def read_targets(file: CsvFile, target: str, estimator: Any, task: Task) -> list[Any] | None:
    """The target's column, as numbers or as the estimator's own labels; None where no target is named.

    Raises InvalidTrainingData with the line that has something else.
    """
    if not target:
        return None
    file.require([target])
    if task == "regression":
        return [line.number_in(target) for line in file.lines]
    labels = {text: label for label in np.asarray(estimator.classes_).tolist() for text in _written(label)}
    found = []
    for line in file.lines:
        text = line.text_in(target)
        if text not in labels:
            raise line.wrong(target, "is none of the estimator's labels")
        found.append(labels[text])
    return found


def _written(label: Any) -> list[str]:
    """The ways in which a label may stand in a CSV file."""
    if isinstance(label, bool):
        return [str(label), str(label).lower(), str(int(label))]
    if isinstance(label, int | float) and label == int(label):
        return [str(int(label)), f"{int(label)}.0"]
    return [str(label)]


def _check_width(given: Given) -> None:
    wanted, columns = getattr(given.estimator, "n_features_in_", None), given.rows.columns
    if isinstance(wanted, int) and wanted != len(columns):
        raise PublishRefused(
            f"the estimator takes {wanted} columns, and there are {len(columns)} ({', '.join(columns)}): "
            "name the --target, or leave out what does not go in"
        )


def _table(given: Given) -> Any:
    """What the estimator was fitted on, as near as can be: a DataFrame when it knows names, or else an array.

    One that wants columns of other types than a CSV file can say gets dicts, which are put right when it is served.
    """
    rows = given.rows
    if not feature_names(given.estimator):
        return _array(rows)
    if find_spec("pandas"):
        import pandas as pd  # noqa: PLC0415 -- no requirement

        frame = pd.DataFrame(dict(rows.columns))
        try:
            given.estimator.predict(frame.head(_FEW))
        except Exception:  # noqa: BLE001, S110 -- an estimator may raise anything
            pass
        else:
            return frame
    return [{name: column[i] for name, column in rows.columns.items()} for i in range(rows.size)]


def _array(rows: GivenRows) -> Any:
    values = [
        [math.nan if value is None else value for value in row] for row in zip(*rows.columns.values(), strict=True)
    ]
    numeric = all(isinstance(value, bool | int | float) for row in values for value in row)
    return np.array(values, dtype=float if numeric else object)


def _answers(estimator: Any, X: Any) -> list[Any]:
    try:
        answers = np.asarray(estimator.predict(X))
    except Exception as error:  # an estimator may raise anything
        reason = str(error).partition("\n")[0]
        raise PublishRefused(f"the estimator cannot answer for these rows: {type(error).__name__}: {reason}") from error
    if answers.ndim != 1:
        raise PublishRefused("the estimator has several outputs, and one is what can be served")
    listed: list[Any] = answers.tolist()
    return listed


def _evaluation(given: Given, X: Any, answers: Sequence[Any]) -> Evaluation:
    estimator, rows = given.estimator, given.rows
    if given.task == "regression":
        metrics = regression_metrics(given.targets, answers)
    else:
        classes, sure = np.asarray(estimator.classes_), hasattr(estimator, "predict_proba")
        probabilities = estimator.predict_proba(X) if sure else _certain(answers, classes)
        metrics = classification_metrics(np.asarray(given.targets), classes, probabilities)
        metrics = metrics if sure else {name: metrics[name] for name in ("accuracy", "balanced_accuracy")}
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return Evaluation(data=rows.description, rows=rows.size, measured=_MEASURED, metrics=finite)


def _certain(answers: Sequence[Any], classes: Any) -> Any:
    """Labels as probabilities of shape (rows, classes), for an estimator that has none."""
    return (np.asarray(answers)[:, None] == classes[None, :]).astype(float)
