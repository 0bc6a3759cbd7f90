"""Folded text answers as scikit-learn does, whatever the configuration; what does not fold is refused with a reason."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import (
    CountVectorizer,
    HashingVectorizer,
    TfidfTransformer,
    TfidfVectorizer,
)
from sklearn.feature_selection import SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Perceptron,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import ComplementNB, MultinomialNB
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler
from sklearn.svm import LinearSVC

from app.errors import ModelFailed
from app.runtimes.folding import NotFoldable
from app.runtimes.linear_text import fold_text
from app.runtimes.sklearn import SklearnRuntime
from tests.support.agreement import assert_same_answers

WORDS = [
    *("the", "a", "I", "it", "is", "good", "bad", "great", "awful", "like", "likes", "don't", "x2", "_id", "42"),
    *("café", "Ünder", "naïve", "ß", "İstanbul", "\u03a3\u039f\u03a6\u039f\u03a3", "e\u0301te"),
]
TEXTS = [
    "the good café is good, it is great",
    "I like it: great, great, great!",
    "a good x2 like the 42",
    "Ünder naïve \u03a3\u039f\u03a6\u039f\u03a3 likes it",
    "good good good",
    "the bad café is awful",
    "I don't like it. awful",
    "it is bad, the _id is bad",
    "İstanbul ß 42 bad",
    "bad e\u0301te don't don't",
    "so so",
    "it is what it is",
    "what is the x2 42 for",
    "neither good nor bad",
    "the the the",
] * 2
TWO = (["good"] * 5 + ["bad"] * 5 + ["bad", "good"] * 2 + ["bad"]) * 2
THREE = (["good"] * 5 + ["bad"] * 5 + ["so"] * 5) * 2
ODD = [
    "",
    " ",
    "\n",
    "zzz",
    "!!!",
    "\u2028",
    "ß" * 50,
    "good" * 500,
    "good " * 300,
    "a b c d e f g " * 40,
    "İ",
    "🙂 good",
]

_APOSTROPHES = r"(?u)\b\w[\w']*\b"

_pieces = st.one_of(st.sampled_from([*WORDS, " ", "  ", "\t", "'", ", ", "\xa0", "\x1c"]), st.text(max_size=4))
_texts = st.lists(_pieces, max_size=30).map(" ".join) | st.lists(_pieces, max_size=30).map("".join)

_vectorizers = st.builds(
    TfidfVectorizer,
    analyzer=st.sampled_from(["word", "word", "char_wb", "char"]),
    ngram_range=st.sampled_from([(1, 1), (1, 2), (2, 2), (1, 3), (2, 4), (5, 9)]),
    sublinear_tf=st.booleans(),
    norm=st.sampled_from(["l1", "l2", None]),
    use_idf=st.booleans(),
    smooth_idf=st.just(value=True),
    binary=st.booleans(),
    lowercase=st.booleans(),
    strip_accents=st.sampled_from([None, "ascii", "unicode"]),
    stop_words=st.sampled_from([None, ["the", "it"], ["is"]]),
    token_pattern=st.sampled_from([r"(?u)\b\w\w+\b", r"(?u)\b\w+\b", r"\w+", _APOSTROPHES, r"[^,]+", r"(\w)\w*", "."]),
    max_features=st.sampled_from([None, 12]),
)
_classifiers: st.SearchStrategy[Any] = st.sampled_from(
    [
        LogisticRegression(C=5.0),
        SGDClassifier(loss="log_loss", random_state=0),
        SGDClassifier(loss="modified_huber", random_state=0),
        SGDClassifier(random_state=0),
        LinearSVC(random_state=0),
        RidgeClassifier(),
        Perceptron(random_state=0),
        MultinomialNB(),
        ComplementNB(),
        CalibratedClassifierCV(LinearSVC(random_state=0), cv=2),
        CalibratedClassifierCV(LogisticRegression(), cv=2, ensemble=False),
        CalibratedClassifierCV(LogisticRegression(), cv=2, method="isotonic"),
        CalibratedClassifierCV(MultinomialNB(), cv=2, method="isotonic", ensemble=False),
    ]
)
_often = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


def _check(estimator: Any, texts: list[str], task: Any = "classification") -> None:
    """Together, and each alone: there are two ways through most forms."""
    form, reference = fold_text(estimator), SklearnRuntime(estimator, task)
    assert_same_answers(form, reference, texts, len(texts))
    for text in texts:
        assert_same_answers(form, reference, [text], 1)


@_often
@pytest.mark.filterwarnings("ignore::UserWarning")
@given(vectorizer=_vectorizers, classifier=_classifiers, labels=st.sampled_from([TWO, THREE]), data=st.data())
def test_every_vectoriser_and_classifier_fold_exactly(vectorizer: Any, classifier: Any, labels: Any, data: Any) -> None:
    """Any analyser, n-grams, norm and pattern, under any linear classifier, for texts with anything in them."""
    try:
        fitted = make_pipeline(vectorizer, classifier).fit(TEXTS, labels)
    except ValueError:  # an empty vocabulary: nothing that could be served
        return
    texts = data.draw(st.lists(_texts, min_size=1, max_size=5))
    _check(fitted, [*texts, *ODD, *TEXTS[:3]])


@settings(_often, max_examples=15)  # each of which is fitted two or three times
@given(texts=st.lists(_texts, min_size=1, max_size=5), cv=st.sampled_from([2, 3]), ensemble=st.booleans())
def test_a_union_inside_a_calibration_folds(texts: list[str], cv: int, *, ensemble: bool) -> None:
    """Words and characters, each with a weight; with an ensemble, every member has vectorisers of its own."""
    union = FeatureUnion(
        [
            ("words", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_APOSTROPHES)),
            ("none", "drop"),
            ("characters", TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=2)),
            ("counts", make_pipeline(CountVectorizer(), TfidfTransformer(norm="l1"))),
        ],
        transformer_weights={"words": 1.5, "characters": 0.5},
    )
    linear = make_pipeline(union, LogisticRegression(C=5))
    _check(CalibratedClassifierCV(linear, cv=cv, ensemble=ensemble).fit(TEXTS, TWO), [*texts, *ODD])


@pytest.mark.parametrize("labels", [TWO, THREE], ids=["two", "three"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: make_pipeline(CountVectorizer(), LogisticRegression()),
        lambda: make_pipeline(CountVectorizer(binary=True), TfidfTransformer(sublinear_tf=True), LogisticRegression()),
        lambda: make_pipeline(TfidfVectorizer(), StandardScaler(with_mean=False), LogisticRegression()),
        lambda: make_pipeline(TfidfVectorizer(), SelectKBest(k=5), MaxAbsScaler(), LogisticRegression()),
        lambda: make_pipeline(TfidfVectorizer(), TruncatedSVD(3, random_state=0), LogisticRegression()),
        lambda: GridSearchCV(make_pipeline(TfidfVectorizer(), LogisticRegression()), {}, cv=2),
        lambda: make_pipeline(TfidfVectorizer(vocabulary=["good", "bad", "it is", "a b c"]), LogisticRegression()),
        lambda: make_pipeline(
            TfidfVectorizer(vocabulary=["good", "it is", "a b c"], ngram_range=(2, 2)), LogisticRegression()
        ),
        lambda: make_pipeline(TfidfVectorizer(), "passthrough", LogisticRegression()),
    ],
)
def test_what_stands_between_vectoriser_and_classifier_folds_too(make: Callable[[], Any], labels: list[str]) -> None:
    """Scaling, selection and projection are affine; a search is its best estimator, a frozen one itself."""
    _check(make().fit(TEXTS, labels), [*TEXTS, *ODD])


@pytest.mark.parametrize("sublinear", [True, False], ids=["sublinear", "plain"])
@pytest.mark.parametrize("norm", ["l1", "l2", None])
@pytest.mark.parametrize("repeats", [2, 3, 200, 300])
def test_words_and_pairs_that_repeat_weigh_what_they_should(repeats: int, norm: Any, *, sublinear: bool) -> None:
    """Also across words that are no tokens, and whether few of them repeat or so many that all are counted."""
    estimator = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), norm=norm, sublinear_tf=sublinear), Ridge())
    pieces = ["it a is ", "good ", "it I it ", "bad a bad I the zzz a good ", "a "]
    texts = [piece * repeats for piece in pieces] + [f"{piece * repeats} what is good" for piece in pieces]
    _check(estimator.fit(TEXTS, np.arange(len(TEXTS))), texts, "regression")


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_a_model_that_was_fitted_before_its_calibration_folds(method: Any) -> None:
    """The estimator inside is frozen."""
    fitted = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS, THREE)
    _check(CalibratedClassifierCV(FrozenEstimator(fitted), method=method).fit(TEXTS, THREE), [*TEXTS, *ODD])


@pytest.mark.parametrize("final", [Ridge(), LinearRegression()])
@pytest.mark.parametrize("ngrams", [(1, 2), (1, 3)])
def test_regressions_fold(final: Any, ngrams: tuple[int, int]) -> None:
    """A number for each text, in floats."""
    estimator = make_pipeline(TfidfVectorizer(ngram_range=ngrams), final)
    _check(estimator.fit(TEXTS, np.arange(len(TEXTS))), [*TEXTS, *ODD], "regression")


class _Own(TfidfVectorizer):  # type: ignore[misc]
    """A subclass may do anything."""


@pytest.mark.parametrize(
    ("vectorizer", "final", "reason"),
    [
        (TfidfVectorizer(preprocessor=str.upper), LogisticRegression(), "preprocessor is code of its own"),
        (TfidfVectorizer(tokenizer=str.split, token_pattern=None), LogisticRegression(), "tokenizer is code"),
        (TfidfVectorizer(analyzer=str.split), LogisticRegression(), "analyzer is code"),
        (TfidfVectorizer(strip_accents=str.upper), LogisticRegression(), "analyzer is code"),
        (TfidfVectorizer(dtype=np.float32), LogisticRegression(), "float32"),
        (HashingVectorizer(n_features=64), LogisticRegression(), "HashingVectorizer"),
        (_Own(), LogisticRegression(), "_Own"),
        (TfidfVectorizer(), RandomForestClassifier(2), "RandomForestClassifier"),
        (make_pipeline(TfidfVectorizer(), StandardScaler(with_mean=False)), LogisticRegression(), "Pipeline"),
        (TfidfVectorizer(), CalibratedClassifierCV(LogisticRegression(), cv=2, method="temperature"), "temperature"),
        (TfidfVectorizer(), CalibratedClassifierCV(RandomForestClassifier(2), cv=2), "RandomForestClassifier"),
    ],
)
def test_what_does_not_fold_exactly_is_refused(vectorizer: Any, final: Any, reason: str) -> None:
    """With a reason that names what it is."""
    estimator = make_pipeline(vectorizer, final).fit(TEXTS, TWO)
    with pytest.raises(NotFoldable, match=reason):
        fold_text(estimator)


def test_a_model_of_numbers_is_refused() -> None:
    """Without a vectoriser there are no texts."""
    with pytest.raises(NotFoldable, match="no texts"):
        fold_text(LogisticRegression().fit([[0.0], [1.0]], [0, 1]))


def test_weights_that_are_not_finite_are_refused() -> None:
    """Such a model fails on every text, and scikit-learn shall say so."""
    estimator = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS, TWO)
    estimator[-1].coef_[0, 0] = np.inf
    with pytest.raises(NotFoldable, match="not finite"):
        fold_text(estimator)


def test_another_number_of_texts_than_rows_is_a_failure() -> None:
    """As it is in every runtime."""
    form = fold_text(make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS, TWO))
    with pytest.raises(ModelFailed):
        form.predict(["good", "bad"], 1)


def test_remembered_words_are_forgotten_before_they_fill_the_memory() -> None:
    """More words than are kept, and the answers are still right."""
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3))
    estimator = make_pipeline(vectorizer, LogisticRegression()).fit(TEXTS, TWO)
    form = fold_text(estimator)
    form.predict([" ".join(f"good{i}" for i in range(20_000))], 1)
    assert_same_answers(form, SklearnRuntime(estimator, "classification"), TEXTS, len(TEXTS))
