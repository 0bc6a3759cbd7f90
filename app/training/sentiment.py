"""`sentiment`: positive or negative, from a sentence or two of a review.

The demo data are `corpora/sentiment.csv`, written for this project. Its order is that in which it was written, where
sentences that mirror each other stand together; so folds keep neighbours together, or a model would be measured on
sentences whose twin it has seen.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline

from app.errors import InvalidTrainingData
from app.manifest import InputField
from app.training.csv_files import LEAST_ROWS, CsvFile, Line, read_csv
from app.training.fields import TEXT_LENGTH
from app.training.recipe import Data, Recipe, RecipeVersion, Thresholds, check_labels

CORPUS = Path(__file__).parent / "corpora" / "sentiment.csv"
# Neighbours that stay on one side of a fold; fewer rows than so many folds of such blocks are taken one by one.
_BLOCK = 10
_LEAST_FOR_BLOCKS = 500
# Words with what stands after an apostrophe, so that "didn't" is one word; single letters, too.
_WORDS = r"(?u)\b\w[\w']*\b"

_FIELDS = (
    InputField(
        name="text",
        dtype="text",
        description="A sentence or two of English.",
        max_length=TEXT_LENGTH,
        example="I love this product",
    ),
)


def read_texts(path: Path, thresholds: Thresholds | None = None) -> Data:
    """A file with the columns `text` and `label`, or `text` and `rating`; a text that repeats counts once.

    A rating becomes a label by `thresholds`; without them, ratings on both sides of zero are split at ±0.5, and stars
    from 1 to 5 at 4 and 2. Raises InvalidTrainingData.
    """
    file = read_csv(path)
    file.require(["text"])
    rated = "label" not in file.columns or (thresholds is not None and "rating" in file.columns)
    if rated and "rating" not in file.columns:
        raise InvalidTrainingData(f"{file.name} lacks a column label or rating beside text")
    if not rated and thresholds is not None:
        raise InvalidTrainingData(f"{file.name} has labels and no column rating, so no thresholds apply")
    label, rule = _rating_label(file, thresholds) if rated else (lambda line: line.text_in("label"), "")
    pairs: dict[str, tuple[str, str]] = {}
    for line in file.lines:
        text = normalize("NFC", line.text_in("text"))
        if found := label(line):
            pairs.setdefault(text.casefold(), (text, found))
    if len(pairs) < LEAST_ROWS:
        raise InvalidTrainingData(f"{file.name} has {len(pairs)} different texts with a label, too few to learn from")
    y = np.array([found for _, found in pairs.values()])
    check_labels(file, y)
    description = f"{file.name} ({file.sha256[:12]}…), {len(y):,} of {len(file.lines):,} rows{rule}"
    return Data([text for text, _ in pairs.values()], y, description, file.sha256, _groups(len(y)))


def _rating_label(file: CsvFile, given: Thresholds | None) -> tuple[Callable[[Line], str | None], str]:
    """What turns a line into a label, or None where it is neither; and the rule in words."""
    at = given or _usual_thresholds(file)

    def label(line: Line) -> str | None:
        rating = line.number_in("rating")
        return "positive" if rating >= at.positive_from else "negative" if rating <= at.negative_up_to else None

    rule = f", rating from {at.positive_from:g} positive, up to {at.negative_up_to:g} negative, the rest left out"
    return label, rule


def _usual_thresholds(file: CsvFile) -> Thresholds:
    ratings = [line.number_in("rating") for line in file.lines]
    low, high = min(ratings), max(ratings)
    if low < 0 < high:
        return Thresholds(positive_from=0.5, negative_up_to=-0.5)
    if low >= 1 and high <= 5:  # noqa: PLR2004 -- stars
        return Thresholds(positive_from=4, negative_up_to=2)
    raise InvalidTrainingData(
        f"{file.name} has ratings from {low:g} to {high:g}: "
        "say what they mean with --positive-from and --negative-up-to"
    )


def _groups(rows: int) -> Any:
    return np.arange(rows) // _BLOCK if rows >= _LEAST_FOR_BLOCKS else None


def _demo() -> Data:
    data = read_texts(CORPUS)
    description = f"a corpus of {len(data.y):,} review sentences, written for this project"
    return Data(data.X, data.y, description, data.sha256, data.groups)


def _words() -> Any:
    return make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10, solver="newton-cg"),
    )


def _words_and_characters() -> Any:
    union = FeatureUnion(
        [
            ("words", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORDS)),
            ("characters", TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=2)),
        ],
        transformer_weights={"words": 1.5, "characters": 1.0},
    )
    linear = make_pipeline(union, LogisticRegression(C=5, solver="newton-cg"))
    # The vectorisers are inside: calibrated on words that they have never seen, as it will be on callers' texts. One
    # model answers (ensemble=False), so that a call costs one transform.
    return CalibratedClassifierCV(linear, cv=3, ensemble=False)


RECIPE = Recipe(
    name="sentiment",
    task="text-classification",
    description="Tells whether a sentence or two of a review are positive or negative.",
    intended_use="Short English texts about products, places and services.",
    limitations="It weighs words, not meaning: irony, comparisons and long-range negation escape it. "
    "There is no neutral: a text without an opinion gets one of the two labels all the same.",
    fields=_FIELDS,
    target="sentiment",
    versions={
        1: RecipeVersion(
            build=_words, method="TF-IDF of words and pairs of words, and logistic regression", aliases=("v1",)
        ),
        2: RecipeVersion(
            build=_words_and_characters,
            method="TF-IDF of words, pairs of words and character n-grams, and calibrated logistic regression",
            aliases=("champion",),
        ),
    },
    demo=_demo,
    read=read_texts,
)
