"""A key says all that an answer follows from and nothing else; an entry comes back as it was, or not at all."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier

from app.inference.entries import Entries
from app.manifest import InputField, Outputs
from app.pipelines.base import Prediction, to_json
from app.registry.loader import LoadedModel
from tests.support.caching import model_of
from tests.support.manifests import make_manifest
from tests.support.versions import NUMBER, X

KEY = b"k" * 32
ROW = {"a": 1.0, "b": 2.0, "n": 1, "f": True, "c": "x", "t": "né"}
FIELDS = (
    InputField(name="a", dtype="float"),
    InputField(name="b", dtype="float", missing="allow"),
    InputField(name="n", dtype="integer"),
    InputField(name="f", dtype="boolean"),
    InputField(name="c", dtype="category", categories=("1", "x")),
    InputField(name="t", dtype="text", max_length=9),
)


def _mixed(**rules: Any) -> LoadedModel:
    manifest = make_manifest(*FIELDS, container="objects", task="regression", outputs=NUMBER)
    return model_of(manifest, **rules)


def _key(row: dict[str, Any], model: LoadedModel | None = None, subject: str = "alice") -> bytes:
    """Of a row as a caller writes it."""
    model = model or _mixed()
    (valid,) = model.pipeline.validate([row])
    assert isinstance(valid, dict), valid
    return Entries(model).keys([valid], subject)[0]


def test_rows_that_mean_the_same_have_one_key() -> None:
    """A whole number for a float, members in another order, and null for what may be left out."""
    without = {name: value for name, value in ROW.items() if name != "b"}
    assert _key({**ROW, "a": 1}) == _key(dict(reversed(ROW.items()))) == _key(ROW)
    assert _key(without) == _key({**ROW, "b": None})


@pytest.mark.parametrize(
    "other",
    [
        {"a": 1.0000000000000002},
        {"b": None},
        {"n": 2},
        {"f": False},
        {"c": "1"},
        {"t": "né "},
        {"t": "ne\u0301"},
        {"a": 2.0, "b": 1.0},
    ],
    ids=str,
)
def test_rows_that_differ_have_keys_of_their_own(other: dict[str, Any]) -> None:
    """By the last bit of a number, and by the form of a text where the estimator gets it as it stands."""
    assert _key({**ROW, **other}) != _key(ROW)


def test_a_zero_keeps_its_sign() -> None:
    """An estimator can tell them apart."""
    assert _key({**ROW, "a": -0.0}) != _key({**ROW, "a": 0.0})


def test_values_that_python_takes_for_equal_are_not() -> None:
    """1, 1.0, true and "1" are four values, wherever they come from."""
    model = model_of(make_manifest(X, task="regression", outputs=NUMBER))
    assert len(set(Entries(model).keys([{"x": 1}, {"x": 1.0}, {"x": True}, {"x": "1"}], ""))) == 4


def test_a_text_is_one_in_whatever_form_it_is_written() -> None:
    """Where the estimator takes texts, it gets them composed."""
    text = InputField(name="t", dtype="text", max_length=9)
    model = model_of(make_manifest(text, container="texts", task="regression", outputs=NUMBER))
    assert _key({"t": "ne\u0301"}, model) == _key({"t": "né"}, model) != _key({"t": "ne"}, model)


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": Outputs(target="answer", labels=("nein", "ja"), probabilities=True)},
        {"outputs": Outputs(target="answer", labels=("no", "yes"))},
        {"fields": (X.model_copy(update={"missing": "allow"}),)},
        {"container": "objects"},
        {"cache": "private"},
    ],
    ids=str,
)
def test_one_artefact_under_two_manifests_is_two_models(changes: dict[str, Any]) -> None:
    """The same bytes with other labels or fed in another way answer something else."""
    estimator = DummyClassifier().fit([[0.0], [1.0]], [0, 1])
    changed = {"container": "matrix", "fields": (X,), "cache": "shared", **changes}
    outputs = {"outputs": changed["outputs"]} if "outputs" in changed else {}
    same = Entries(model_of(make_manifest(X), estimator)).keys([{"x": 1.0}], "alice")
    manifest = make_manifest(*changed["fields"], container=changed["container"], **outputs)
    assert Entries(model_of(manifest, estimator, cache=changed["cache"])).keys([{"x": 1.0}], "alice") != same


def test_what_a_version_is_called_is_not_in_the_key() -> None:
    """The same artefact, published again with another description, has the same answers."""
    estimator = DummyClassifier().fit([[0.0], [1.0]], [0, 1])
    keys = [
        Entries(model_of(make_manifest(X, name=name, version=version), estimator)).keys([{"x": 1.0}], "")
        for name, version in (("toy", 1), ("toy", 2), ("other", 1))
    ]
    assert keys[0] == keys[1] == keys[2]


def test_only_a_private_model_asks_who_asks() -> None:
    """And nobody can pass for another by what a row says."""
    shared, private = _mixed(), _mixed(cache="private")
    assert _key(ROW, shared, "alice") == _key(ROW, shared, "bob")
    assert _key(ROW, private, "alice") != _key(ROW, private, "bob")
    assert _key(ROW, private, 'alice",1.0') != _key(ROW, private, "alice")


CLASSIFIER = model_of(
    make_manifest(X, outputs=Outputs(target="t", labels=(True, 1, "one"), probabilities=True)),
    DummyClassifier().fit([[0.0], [1.0], [2.0]], [0, 1, 2]),
)
PLAIN = model_of(
    make_manifest(X, outputs=Outputs(target="t", labels=("no", "yes"))), DummyClassifier().fit([[0.0], [1.0]], [0, 1])
)
REGRESSION = model_of(make_manifest(X, task="regression", outputs=NUMBER))
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(label=st.sampled_from([True, 1, "one"]), shares=st.tuples(FINITE, FINITE, FINITE), number=FINITE)
def test_an_answer_comes_back_to_the_last_bit_and_type(
    label: Any, shares: tuple[float, float, float], number: float
) -> None:
    """Through memory and through Redis."""
    answers = [
        (CLASSIFIER, Prediction(label, dict(zip(("True", "1", "one"), shares, strict=True)))),
        (PLAIN, Prediction("yes")),
        (REGRESSION, Prediction(number)),
    ]
    for model, answer in answers:
        entries = Entries(model)
        entry = entries.pack(answer)
        assert entry is not None
        assert repr(entries.unpack(entry)) == repr(answer)
        decoded = entries.decode(KEY, entries.encode(KEY, entry, 123))
        assert decoded is not None
        assert (repr(entries.unpack(decoded[0])), decoded[1]) == (repr(answer), 123)


SHARES = [0.5, 0.25, 0.25]
GOOD = [1, KEY.hex(), 123, "one", SHARES]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"{}",
        b'"one"',
        b"5",
        b"[",
        b"\x80\x04N.",
        b"\xff",
        b"[" * 10_000,
        to_json(GOOD) + b" " * 10_000,
        to_json(GOOD[:-1]),
        to_json([*GOOD, 1]),
        to_json([2, *GOOD[1:]]),
        to_json([1, "0" * 64, *GOOD[2:]]),
        to_json([1, KEY.hex(), "123", "one", SHARES]),
        to_json([1, KEY.hex(), True, "one", SHARES]),
        to_json([1, KEY.hex(), 123, "two", SHARES]),
        to_json([1, KEY.hex(), 123, 1.0, SHARES]),
        to_json([1, KEY.hex(), 123, "1", SHARES]),
        to_json([1, KEY.hex(), 123, None, SHARES]),
        to_json([1, KEY.hex(), 123, ["one"], SHARES]),
        to_json([1, KEY.hex(), 123, "one", None]),
        to_json([1, KEY.hex(), 123, "one", [0.5, 0.5]]),
        to_json([1, KEY.hex(), 123, "one", [0.5, 0.25, 0.25, 0.0]]),
        to_json([1, KEY.hex(), 123, "one", [0.5, 0.25, None]]),
        to_json([1, KEY.hex(), 123, "one", [0.5, 0.25, "0.25"]]),
        to_json([1, KEY.hex(), 123, "one", [0.5, 0.25, True]]),
        to_json([1, KEY.hex(), 123, "one", {"True": 0.5, "1": 0.25, "one": 0.25}]),
        to_json(GOOD).replace(b"0.5", b"NaN"),
        to_json(GOOD).replace(b"0.5", b"1e999"),
    ],
    ids=lambda raw: repr(raw[:40]),
)
def test_what_the_model_could_not_have_answered_is_no_entry(raw: bytes) -> None:
    """Whatever stands in Redis, and however near to the truth it is."""
    assert Entries(CLASSIFIER).decode(KEY, to_json(GOOD)) == (("one", tuple(SHARES)), 123)
    assert Entries(CLASSIFIER).decode(KEY, raw) is None


@pytest.mark.parametrize("value", ["5.0", 5, True, None, [5.0]])
def test_a_number_is_a_number(value: Any) -> None:
    """A regression answers nothing else; and without probabilities there are none."""
    assert Entries(REGRESSION).decode(KEY, to_json([1, KEY.hex(), 123, 5.0, None])) == ((5.0, None), 123)
    assert Entries(REGRESSION).decode(KEY, to_json([1, KEY.hex(), 123, value, None])) is None
    assert Entries(REGRESSION).decode(KEY, to_json([1, KEY.hex(), 123, 5.0, []])) is None


@pytest.mark.parametrize(
    "answer",
    [Prediction("two", {"True": 0.5, "1": 0.25, "one": 0.25}), Prediction("one"), Prediction("one", {"one": 1.0})],
)
def test_an_answer_that_could_not_be_read_back_is_not_kept(answer: Prediction) -> None:
    """A runtime that words it in another way is asked each time."""
    assert Entries(CLASSIFIER).pack(answer) is None
