"""A version is served only when it is proven: everything that can be wrong with one is refused, with its reason."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from app.errors import VersionRefused
from app.manifest import CacheRules, Golden, GoldenRow, Outputs
from app.registry.artefact import read_estimator
from app.registry.loader import LoadedModel, load_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from app.runtimes.base import Runtime
from app.runtimes.compile import Candidate, Compiling
from app.runtimes.sklearn import SklearnRuntime
from tests.support.estimators import Brittle, Forgetful, Parrot
from tests.support.versions import HERE, LABELS, NUMBER, one_golden, write_classifier, write_raw, write_version

OURS = ("tests.support.estimators",)


def _load(root: Path, modules: tuple[str, ...] = (), libraries: Literal["exact", "proven"] = "exact") -> LoadedModel:
    return load_version(DirectorySource(root), "toy", 1, Trust(modules, libraries=libraries))


def _reason(root: Path, modules: tuple[str, ...] = ()) -> str:
    with pytest.raises(VersionRefused) as caught:
        _load(root, modules)
    return caught.value.refusal.reason


def test_a_version_that_is_right_in_every_way_is_loaded(tmp_path: Path) -> None:
    """It answers, and says what it is."""
    manifest = write_classifier(tmp_path)
    model = _load(tmp_path)
    assert (model.name, model.version, model.manifest) == ("toy", 1, manifest)
    answers = model.pipeline.postprocess(model.runtime.predict(np.array([[0.0], [19.0]]), 2))
    assert [answer.value for answer in answers] == ["small", "big"]


@pytest.mark.parametrize("compress", [1, 9])
def test_a_compressed_artefact_is_loaded(tmp_path: Path, compress: int) -> None:
    """Whoever saved with `compress` need not save again."""
    numbers = np.arange(20.0).reshape(-1, 1)
    estimator = DummyClassifier().fit(numbers, ["small"] * 20)
    golden = Golden(rows=(GoldenRow(inputs={"x": 1.0}, prediction="small", probabilities={"small": 1.0}),))
    outputs = Outputs(target="size", labels=("small",), probabilities=True)
    write_version(tmp_path, estimator, compress=compress, golden=golden, outputs=outputs)
    assert _load(tmp_path).reference.classes == ["small"]


def test_every_flipped_bit_is_refused_before_anything_is_unpickled(tmp_path: Path) -> None:
    """Each of 200 flips over the file is a digest mismatch."""
    write_classifier(tmp_path)
    path = tmp_path / "toy/1/model.joblib"
    original = path.read_bytes()
    for position in np.linspace(0, len(original) - 1, 200).astype(int):
        damaged = bytearray(original)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        assert _reason(tmp_path) == "digest_mismatch"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "model.joblib").unlink(), "artefact_unreadable"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest_unreadable"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest_invalid"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest_invalid"),
        (lambda folder: (folder / "model.joblib").write_bytes(b""), "digest_mismatch"),
    ],
)
def test_a_folder_with_something_missing_is_refused(tmp_path: Path, damage: Callable[[Path], Any], reason: str) -> None:
    """A missing or unreadable part has a reason of its own."""
    write_classifier(tmp_path)
    damage(tmp_path / "toy/1")
    assert _reason(tmp_path) == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"versions": HERE.model_copy(update={"scikit_learn": "1.0.2"})}, "library_mismatch"),
        ({"versions": HERE.model_copy(update={"numpy": "1.26.4"})}, "library_mismatch"),
        ({"versions": HERE.model_copy(update={"python": "3.9.1"})}, "library_mismatch"),
        ({"versions": HERE.model_copy(update={"scikit_learn": ""})}, "library_mismatch"),
        ({"golden": Golden(rows=(GoldenRow(inputs={"x": 1.0}, prediction="big"),))}, "golden_mismatch"),
        ({"golden": Golden(rows=(GoldenRow(inputs={"y": 1.0}, prediction="small"),))}, "golden_mismatch"),
        ({"golden": one_golden("small")}, "golden_mismatch"),
        ({"outputs": LABELS}, "outputs_mismatch"),
        ({"outputs": Outputs(target="size", labels=("s", "m", "l"), probabilities=True)}, "outputs_mismatch"),
    ],
)
def test_a_manifest_that_does_not_match_its_artefact_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    """Libraries, outputs and golden rows must be those of the estimator beside it."""
    write_classifier(tmp_path, **changes)
    assert _reason(tmp_path) == reason


@pytest.mark.parametrize(
    ("member", "there", "said"),
    [
        ("scikit_learn", "1.0.2", f"fitted with scikit-learn 1.0.2, and this is {HERE.scikit_learn}"),
        ("numpy", "1.26.4", f"fitted with numpy 1.26.4, and this is {HERE.numpy}"),
        ("python", "3.9.1", f"fitted with Python 3.9.1, and this is {HERE.python}"),
    ],
)
def test_a_version_of_other_libraries_is_served_where_it_is_to_be_proven_and_is(
    tmp_path: Path, member: str, there: str, said: str
) -> None:
    """`MODEL_LIBRARIES=proven`: golden rows that come out equal are enough; ones that do not name both versions."""
    versions = HERE.model_copy(update={member: there})
    write_classifier(tmp_path / "right", versions=versions)
    with pytest.raises(VersionRefused, match=f"library_mismatch: {said}: train it again, or set MODEL_LIBRARIES"):
        _load(tmp_path / "right")
    assert _load(tmp_path / "right", libraries="proven").manifest.versions == versions
    golden = Golden(rows=(GoldenRow(inputs={"x": 1.0}, prediction="big", probabilities={"small": 0.4, "big": 0.6}),))
    write_classifier(tmp_path / "wrong", versions=versions, golden=golden)
    with pytest.raises(VersionRefused, match=f"golden_mismatch: golden row 0 does not come out as recorded; {said}"):
        _load(tmp_path / "wrong", libraries="proven")


def test_libraries_that_differ_a_little_are_the_same(tmp_path: Path) -> None:
    """Another minor numpy, another patch of Python, another scipy."""
    numpy, python = HERE.numpy.partition(".")[0], HERE.python.rpartition(".")[0]
    write_classifier(
        tmp_path, versions=HERE.model_copy(update={"numpy": f"{numpy}.99.0", "python": f"{python}.99", "scipy": "0.1"})
    )
    assert _load(tmp_path).version == 1


@pytest.mark.parametrize("libraries", ["exact", "proven"])
def test_what_scikit_learn_says_of_a_pickle_of_another_version(
    tmp_path: Path, libraries: Literal["exact", "proven"]
) -> None:
    """Its word counts whatever the manifest says, unless golden rows are to decide."""
    numbers = np.arange(20.0).reshape(-1, 1)
    estimator = LogisticRegression().fit(numbers, numbers[:, 0] >= 10)
    raw = pickle.dumps(estimator).replace(HERE.scikit_learn.encode(), b"0" * len(HERE.scikit_learn))
    small, big = estimator.predict_proba([[1.0]])[0].tolist()
    golden = GoldenRow(inputs={"x": 1.0}, prediction="small", probabilities={"small": small, "big": big})
    write_raw(tmp_path, raw, outputs=LABELS.model_copy(update={"probabilities": True}), golden=Golden(rows=(golden,)))
    if libraries == "proven":
        assert _load(tmp_path, libraries=libraries).version == 1
    else:
        assert _reason(tmp_path) == "library_mismatch"


def test_a_folder_whose_manifest_speaks_of_another_version_is_refused(tmp_path: Path) -> None:
    """A copied folder is not a new version."""
    write_classifier(tmp_path)
    (tmp_path / "toy/1").rename(tmp_path / "toy/2")
    with pytest.raises(VersionRefused, match="describes toy 1, not toy 2"):
        load_version(DirectorySource(tmp_path), "toy", 2, Trust())


def test_a_probability_that_drifted_beyond_the_tolerance_is_refused(tmp_path: Path) -> None:
    """The label is the same, the number is not."""
    write_classifier(tmp_path)
    path = tmp_path / "toy/1/manifest.json"
    document = json.loads(path.read_text())
    row = document["golden"]["rows"][0]
    row["probabilities"] = {"small": row["probabilities"]["small"] - 1e-4, "big": row["probabilities"]["big"] + 1e-4}
    path.write_text(json.dumps(document))
    assert _reason(tmp_path) == "golden_mismatch"
    document["golden"]["tolerance"] = 1e-3
    path.write_text(json.dumps(document))
    assert _load(tmp_path).version == 1


def test_code_of_ones_own_is_refused_with_advice_until_it_is_named(tmp_path: Path) -> None:
    """`MODEL_MODULES` names the package that an artefact may contain."""
    estimator = Brittle().fit(np.zeros((2, 1)), ["small", "big"])
    outputs = Outputs(target="size", labels=("big", "small"))
    write_version(tmp_path, estimator, outputs=outputs, golden=one_golden("big"))
    with pytest.raises(VersionRefused, match=r"tests\.support\.estimators\.Brittle.*MODEL_MODULES=tests") as caught:
        _load(tmp_path)
    assert caught.value.refusal.reason == "unknown_code"
    assert _load(tmp_path, OURS).reference.classes == ["big", "small"]
    assert _load(tmp_path, ("tests",)).reference.classes == ["big", "small"]
    assert _reason(tmp_path, ("tests.support.est",)) == "unknown_code"


class _Evil:
    """A pickle that would touch a file."""

    def __init__(self, call: tuple[Any, tuple[Any, ...]]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("how", ["os.system", "exec", "eval", "nested"])
def test_a_pickle_that_would_run_a_command_is_refused_unrun(tmp_path: Path, how: str) -> None:
    """The canary file is never written, also not by a pickle inside an array of objects."""
    import os  # noqa: PLC0415 -- what the attack would use

    canary = tmp_path / "canary"
    calls: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "os.system": (os.system, (f"touch {canary}",)),
        "exec": (exec, (f"open({str(canary)!r}, 'w')",)),
        "eval": (eval, (f"open({str(canary)!r}, 'w')",)),
        "nested": (os.system, (f"touch {canary}",)),
    }
    evil: Any = _Evil(calls[how])
    write_version(tmp_path, np.array([evil], dtype=object) if how == "nested" else evil)
    assert _reason(tmp_path) == "unknown_code"
    assert not canary.exists()


def test_a_dangerous_function_is_not_reached_through_a_library(tmp_path: Path) -> None:
    """What joblib imports, such as `os`, is no way to it."""
    canary = tmp_path / "canary"

    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    program = b"\x80\x04" + text("joblib.disk") + text("os.system") + b"\x93" + text(f"touch {canary}") + b"\x85R."
    with pytest.raises(VersionRefused) as caught:
        read_estimator(program, "model.joblib", Trust())
    assert caught.value.refusal.reason == "unknown_code"
    assert not canary.exists()


def test_a_function_of_a_notebook_is_refused_with_advice(tmp_path: Path) -> None:
    """What is defined in `__main__` cannot be found by anybody else."""
    import __main__  # noqa: PLC0415 -- stands for a notebook

    def double(X: Any) -> Any:
        return X * 2

    double.__module__, double.__qualname__ = "__main__", "double"
    __main__.double = double
    numbers = np.arange(20.0).reshape(-1, 1)
    estimator = make_pipeline(FunctionTransformer(double), LogisticRegression()).fit(numbers, numbers[:, 0] >= 10)
    write_version(tmp_path, estimator)
    with pytest.raises(VersionRefused, match="move it into an importable package"):
        _load(tmp_path)


def test_what_is_no_estimator_is_refused(tmp_path: Path) -> None:
    """A dict is a fine pickle, and no model."""
    write_version(tmp_path, {"weights": [1, 2]})
    assert _reason(tmp_path) == "not_an_estimator"


def test_an_estimator_that_was_never_fitted_is_refused(tmp_path: Path) -> None:
    """Without classes there is nothing to answer."""
    write_version(tmp_path, LogisticRegression())
    assert _reason(tmp_path) == "outputs_mismatch"


def test_a_regression_that_answers_nan_for_its_golden_row_is_refused(tmp_path: Path) -> None:
    """NaN is no prediction."""
    estimator = Forgetful().fit(None, None)
    write_version(tmp_path, estimator, task="regression", outputs=NUMBER, golden=one_golden(26.0, x=13.0))
    assert _reason(tmp_path, OURS) == "golden_mismatch"


@pytest.mark.parametrize(
    "answer",
    [
        np.array([[np.nan, np.nan]]),
        np.array([[0.5]]),
        np.array([0.5, 0.5]),
        np.array([[0.9, 0.1]] * 2),
        np.zeros((0, 2)),
        np.array([[[0.9, 0.1]]]),
        None,
        "small",
    ],
    ids=["NaN", "too few classes", "flat", "too many rows", "no rows", "three dimensions", "nothing", "a text"],
)
def test_a_classifier_that_answers_nonsense_for_its_golden_row_is_refused(tmp_path: Path, answer: Any) -> None:
    """NaN, or another shape than one share for each class."""
    estimator = Parrot(answer).fit(np.zeros((2, 1)), ["big", "small"])
    golden = GoldenRow(inputs={"x": 1.0}, prediction="small", probabilities={"small": 0.9, "big": 0.1})
    outputs = Outputs(target="size", labels=("small", "big"), probabilities=True)
    write_version(tmp_path, estimator, outputs=outputs, golden=Golden(rows=(golden,)))
    assert _reason(tmp_path, OURS) == "golden_mismatch"


def test_n_jobs_is_neutralised_in_every_estimator_inside(tmp_path: Path) -> None:
    """Parallelism comes from requests, not from a pool of threads for each row."""
    numbers = np.arange(20.0).reshape(-1, 1)
    forest = RandomForestClassifier(n_estimators=3, n_jobs=2, random_state=0)
    estimator = make_pipeline(FunctionTransformer(), forest).fit(numbers, numbers[:, 0] >= 10)
    shares = estimator.predict_proba([[1.0]])[0].tolist()
    golden = GoldenRow(inputs={"x": 1.0}, prediction="small", probabilities={"small": shares[0], "big": shares[1]})
    outputs = LABELS.model_copy(update={"probabilities": True})
    write_version(tmp_path, estimator, outputs=outputs, golden=Golden(rows=(golden,)))
    assert _load(tmp_path).reference.estimator[-1].n_jobs is None


def test_whatever_happens_while_forms_are_made_the_version_is_served(tmp_path: Path) -> None:
    """By scikit-learn, as it was proven before: even where a form would end the process."""

    def leaves(reference: SklearnRuntime) -> Runtime:
        sys.exit(f"planted for {reference.name}")

    write_classifier(tmp_path)
    compiling = Compiling(candidates=(Candidate("leaves", leaves, ("matrix",)),))
    model = load_version(DirectorySource(tmp_path), "toy", 1, Trust(), compiling)
    assert model.runtime is model.reference
    assert model.forms == ()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("cache.json", "{", "cache_rules_invalid"),
        ("cache.json", "[]", "cache_rules_invalid"),
        ("cache.json", '{"cache": "Private"}', "cache_rules_invalid"),
        ("cache.json", '{"cache": true}', "cache_rules_invalid"),
        ("cache.json", '{"privat": "private"}', "cache_rules_invalid"),
        ("cache.json", '{"ttl_seconds": 0}', "cache_rules_invalid"),
        ("cache.json", '{"ttl_seconds": "60"}', "cache_rules_invalid"),
        ("cache.json", '{"ttl_seconds": 2592001}', "cache_rules_invalid"),
        ("cache.json", None, "cache_rules_unreadable"),
        ("log.json", "{", "log_rules_invalid"),
        ("log.json", '{"fields": {"y": "drop"}}', "log_rules_invalid"),
        ("log.json", None, "log_rules_unreadable"),
    ],
)
def test_rules_that_cannot_be_followed_keep_the_version_from_being_served(
    tmp_path: Path, file: str, content: str | None, reason: str
) -> None:
    """What was kept, or given to somebody, by mistake cannot be taken back."""
    write_classifier(tmp_path)
    rules = tmp_path / "toy" / file
    rules.mkdir() if content is None else rules.write_text(content)
    assert _reason(tmp_path) == reason


def test_the_rules_of_a_model_go_with_each_of_its_versions(tmp_path: Path) -> None:
    """Beside the versions, so that a new one has them from its first request on."""
    write_classifier(tmp_path)
    assert _load(tmp_path).cache_rules == CacheRules(cache="shared", ttl_seconds=None)
    (tmp_path / "toy/cache.json").write_text('{"cache": "private", "ttl_seconds": 60}')
    assert _load(tmp_path).cache_rules == CacheRules(cache="private", ttl_seconds=60)
