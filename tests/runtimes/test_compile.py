"""A form is used only where it proves to answer as scikit-learn does; what is wrong with one is found, and said."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from app.errors import ModelFailed
from app.pipelines.base import RawOutput
from app.registry.loader import LoadedModel, load_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from app.runtimes.base import Runtime
from app.runtimes.by_size import BySize
from app.runtimes.compile import Build, Candidate, Compiled, Compiling, choose, compile_runtime
from app.runtimes.cost import Cost, least
from app.runtimes.linear import build_linear
from app.runtimes.linear_text import build_text, fold_text
from app.runtimes.sample import Asked, draw_sample
from app.runtimes.sklearn import SklearnRuntime
from app.runtimes.thresholds import raw_thresholds
from app.runtimes.trees import TreesRuntime, build_trees
from app.training.options import Options
from app.training.publish import publish

_EVERY: Any = ("texts", "matrix", "objects", "frame")
_GOOD = ("I love this", "it works great", "a lovely product", "fine and sturdy", "very happy indeed", "excellent sound")
_BAD = ("I hate this", "it broke at once", "a terrible product", "cheap and flimsy", "very sad indeed", "awful sound")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each kind: texts, numbers with and without probabilities, a forest, a regression."""
    root = tmp_path_factory.mktemp("compile")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3)) * [1.0, 30.0, 0.1] + [0.0, 70.0, 1.0]
    y = np.where(X @ [1.0, 0.05, 4.0] + rng.normal(size=300) > 7.5, "high", "low")
    options: Any = {"models_dir": root, "field_names": ("a", "b", "c")}
    texts, labels = [*_GOOD, *_BAD] * 2, ([*["good"] * 6, *["bad"] * 6]) * 2
    text = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10)).fit(texts, labels)
    publish("text", text, texts, labels, task="text-classification", options=Options(models_dir=root))
    for name, estimator in (
        ("linear", make_pipeline(StandardScaler(), LogisticRegression())),
        ("margins", make_pipeline(StandardScaler(), LinearSVC())),
        ("forest", RandomForestClassifier(10, random_state=0)),
    ):
        publish(name, estimator.fit(X, y), X, y, task="classification", options=Options(**options))
    publish("number", Ridge().fit(X, X[:, 0]), X, X[:, 0], task="regression", options=Options(**options))
    return root


def _load(root: Path, name: str, compiling: Compiling | None = None) -> LoadedModel:
    return load_version(DirectorySource(root), name, 1, Trust(), compiling)


def _compiled_with(root: Path, name: str, build: Build, **how: Any) -> Compiled:
    """What becomes of a model when `build` is the only form there is."""
    model = _load(root, name)
    candidates = (Candidate("the form", build, _EVERY),)
    return compile_runtime(model.manifest, model.pipeline, model.reference, Compiling(candidates=candidates, **how))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("text", "folded text"),
        ("linear", "folded linear"),
        ("margins", "folded linear"),
        ("forest", "treelite"),
        ("number", "folded linear"),
    ],
)
def test_the_form_that_fits_is_proven_and_used(root: Path, name: str, form: str) -> None:
    """For one row at least, and the report says how it compares."""
    model = _load(root, name, Compiling())
    assert model.runtime.name.startswith(form)
    report = {line.form: line for line in model.forms}
    assert report[form].chosen_for
    assert (report[form].largest_difference or 0.0) < 1e-9
    assert report[form].labels_equal
    assert set(report[form].microseconds) == set(report["scikit-learn"].microseconds) == {1, 64, 1000}
    assert report[form].microseconds[1] < report["scikit-learn"].microseconds[1] / 2


def test_without_compiling_scikit_learn_answers(root: Path) -> None:
    """And there is no report."""
    model = _load(root, "linear")
    assert model.runtime is model.reference
    assert model.forms == ()


class _Altered:
    """A form that answers what another does, but for one thing."""

    name = "altered"
    steady = True

    def __init__(self, form: Runtime, alter: Callable[[RawOutput], RawOutput]) -> None:
        self._form, self._alter = form, alter

    def predict(self, inputs: Any, rows: int) -> RawOutput:
        return self._alter(self._form.predict(inputs, rows))


def _weight_off(reference: SklearnRuntime) -> Runtime:
    """The last weight is wrong by a thousandth of it."""
    wrong = copy.deepcopy(reference.estimator)
    wrong[-1].coef_[0, -1] *= 1.001
    return fold_text(wrong) if isinstance(wrong[0], TfidfVectorizer) else build_linear(_as_reference(wrong, reference))


def _offset_off(reference: SklearnRuntime) -> Runtime:
    """The intercept is wrong by a ten-millionth: numbers agree, and labels only beside the boundary do not."""
    wrong = copy.deepcopy(reference.estimator)
    wrong[-1].intercept_ += 1e-7
    return build_linear(_as_reference(wrong, reference))


def _as_reference(estimator: Any, reference: SklearnRuntime) -> SklearnRuntime:
    return SklearnRuntime(estimator, "regression" if reference.regression else "classification")


def _doubles(reference: SklearnRuntime) -> Runtime:
    """Compares numbers as they come with thresholds, where scikit-learn makes floats of them first."""

    class Doubles(TreesRuntime):
        def predict(self, inputs: Any, rows: int) -> RawOutput:
            return self._answer(self._walk(np.asarray(inputs, dtype=np.float64)))

    form = build_trees(reference)
    form.__class__ = Doubles
    return form


def _one_row_off(reference: SklearnRuntime) -> Runtime:
    """Right in a batch, and wrong for a row alone."""

    class OneRow:
        name = "one row off"
        steady = True

        def predict(self, inputs: Any, rows: int) -> RawOutput:
            answer = reference.predict(inputs, rows)
            wrong = [1 - int(answer.classes[0])] if rows == 1 else answer.classes
            return RawOutput(classes=wrong, probabilities=answer.probabilities)

    return OneRow()


def _swallows_words(reference: SklearnRuntime) -> Runtime:
    """Knows no letters but those of English, which golden rows would never show."""
    form = build_text(reference)

    class Swallows:
        name = "swallows words"
        steady = True

        def predict(self, inputs: Sequence[str], rows: int) -> RawOutput:
            return form.predict([text.encode("ascii", "ignore").decode().lower() + " love" for text in inputs], rows)

    return Swallows()


def _no_probabilities(reference: SklearnRuntime) -> Runtime:
    return _Altered(reference, lambda answer: RawOutput(classes=answer.classes))


@pytest.mark.parametrize(
    ("name", "build", "reason"),
    [
        ("text", _weight_off, "differs by"),
        ("linear", _weight_off, "labels differ"),
        ("number", lambda r: _Altered(r, lambda a: RawOutput(values=a.values * (1 + 1e-4))), "differs by"),
        ("margins", _offset_off, "labels differ"),
        ("forest", _doubles, "differ"),
        ("forest", _one_row_off, "labels differ"),
        ("text", _swallows_words, "differ"),
        ("linear", _no_probabilities, "another kind of output"),
        ("linear", lambda r: _Altered(r, lambda a: RawOutput(a.classes, a.probabilities * np.nan)), "differs by nan"),
        ("linear", lambda r: _Altered(r, lambda a: RawOutput(a.classes[:-1], a.probabilities[:-1])), "another kind"),
        ("linear", lambda r: _Altered(r, lambda a: a.values[0]), "it raised TypeError"),
        ("linear", lambda _: int("x"), "building it raised ValueError"),
    ],
)
def test_a_form_that_is_wrong_is_caught_and_not_used(root: Path, name: str, build: Build, reason: str) -> None:
    """Whether by much or by little, everywhere or only at a boundary; the report says what was found."""
    compiled = _compiled_with(root, name, build)
    assert compiled.runtime.name == "scikit-learn"
    wrong, right = compiled.forms
    assert reason in wrong.reason
    assert wrong.chosen_for == ""
    assert right.chosen_for == "all"


def test_what_is_not_installed_is_said(root: Path) -> None:
    """An optional package that is missing is a line of the report."""
    model = _load(root, "linear")
    candidates = (Candidate("fast", build_linear, _EVERY, packages=("surely_not_installed",)),)
    compiled = compile_runtime(model.manifest, model.pipeline, model.reference, Compiling(candidates=candidates))
    assert compiled.forms[0].reason == "not installed: surely_not_installed"


class _Breaks:
    """A form that agrees, until it is told to break."""

    name = "breaks"
    steady = True

    def __init__(self, reference: Runtime) -> None:
        self._reference = reference
        self.broken = False

    def predict(self, inputs: Any, rows: int) -> RawOutput:
        if self.broken:
            raise RuntimeError("planted")
        return self._reference.predict(inputs, rows)


def test_a_form_that_raises_later_leaves_the_call_to_scikit_learn(root: Path) -> None:
    """The caller gets the answer, and it is counted; what scikit-learn raises itself is raised, and is not."""
    model = _load(root, "linear")
    counted: list[int] = []
    form = _Breaks(model.reference)
    runtime = BySize([(1, form)], model.reference, lambda: counted.append(1))
    inputs = model.pipeline.preprocess([row.inputs for row in model.manifest.golden.rows])
    expected = model.reference.predict(inputs, len(inputs))
    form.broken = True
    answer = runtime.predict(inputs, len(inputs))
    assert answer.probabilities.tolist() == expected.probabilities.tolist()
    assert counted == [1]
    with pytest.raises(ValueError, match="NaN"):
        runtime.predict(inputs * np.nan, len(inputs))
    assert counted == [1]


def test_each_size_of_call_goes_to_the_form_that_was_chosen_for_it() -> None:
    """Up to its number of rows; beyond the last, the last answers."""

    class Named:
        steady = True

        def __init__(self, name: str) -> None:
            self.name = name

        def predict(self, inputs: Any, rows: int) -> RawOutput:
            return RawOutput(values=[self.name] * rows)

    small, large = Named("small"), Named("large")
    runtime = BySize([(10, small), (1000, large)], large, lambda: None)
    assert runtime.name == "small to 10 rows, large"
    assert [runtime.predict(None, rows).values[0] for rows in (1, 10, 11, 5000)] == ["small", "small", "large", "large"]


def test_the_fastest_is_chosen_and_a_small_gain_is_no_reason_to_switch() -> None:
    """Costs cross between 64 and 100 rows; and a form that is faster by a twentieth is not switched to."""

    class Named:
        steady = True

        def __init__(self, name: str) -> None:
            self.name = name

        def predict(self, inputs: Any, rows: int) -> RawOutput:
            raise ModelFailed(inputs)

    quick, bulk = Named("quick"), Named("bulk")
    costs = [Cost(((1, 1e-5), (1000, 1e-2))), Cost(((1, 8e-4), (1000, 1.1e-3)))]
    assert choose(costs, [quick, bulk]) == [(64, quick), (1000, bulk)]
    alike = [Cost(((1, 1e-5), (1000, 1e-2))), Cost(((1, 1.1e-5), (1000, 0.95e-2)))]
    assert choose(alike, [quick, bulk]) == [(1000, quick)]


@pytest.mark.parametrize(("name", "nearest"), [("text", 0.02), ("linear", 1e-9), ("forest", 0.2)])
def test_the_sample_lies_where_labels_turn_and_is_the_same_each_time(root: Path, name: str, nearest: float) -> None:
    """Both labels occur, some answers are all but undecided, and a second sample is the first."""
    model = _load(root, name)

    def labels(rows: Sequence[Any]) -> list[Any]:
        return list(model.reference.predict(model.pipeline.preprocess(rows), len(rows)).classes)

    samples = [draw_sample(model.manifest, model.reference.estimator, labels, Asked(100, 10.0)) for _ in range(2)]
    assert samples[0] == samples[1]
    answer = model.reference.predict(model.pipeline.preprocess(samples[0]), len(samples[0]))
    assert set(answer.classes) == {0, 1}
    assert np.abs(answer.probabilities[:, 0] - 0.5).min() < nearest
    assert len(model.pipeline.validate(samples[0])) == len(samples[0])


def test_the_sample_of_a_forest_has_rows_at_its_thresholds(root: Path) -> None:
    """Exactly at some of them, and one step of a double to either side."""
    model = _load(root, "forest")
    sample = draw_sample(model.manifest, model.reference.estimator, lambda rows: [0] * len(rows), Asked(100, 1.0))
    names = [field.name for field in model.manifest.fields]
    met = {(name, row[name]) for row in sample for name in names}
    thresholds = [(names[column], value) for column, value in raw_thresholds(model.reference.estimator)]
    exactly = [(name, value) for name, value in thresholds if (name, value) in met]
    assert len(exactly) >= 10
    for name, value in exactly:
        assert {(name, float(np.nextafter(value, to))) for to in (-np.inf, np.inf)} <= met


def test_a_measurement_that_was_disturbed_is_outweighed_by_another() -> None:
    """For each number of rows the least counts, whichever round it comes from; and fewer rows never take longer."""
    disturbed, short = Cost(((1, 1e-5), (4, 9e-1), (64, 5e-1), (1000, 1e-2))), Cost(((1, 2e-5), (4, 3e-5)))
    assert least([disturbed, short]).points == ((1, 1e-5), (4, 3e-5), (64, 1e-2), (1000, 1e-2))
