"""The scores of texts under any terms and for any number of outputs: scikit-learn's own analyser, then numpy.

Terms become columns by the vectoriser's own vocabulary; columns are sorted and counted, for all texts at once.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from app.runtimes.words import TermFrequency

# Words of which the columns are remembered; then all are forgotten, since most texts are made of the same few thousand.
_MOST_WORDS = 8192
Columns = Callable[[str], Any]


def analysed_columns(vectorizer: Any) -> Columns:
    """For any analyser: text → the column of every term that occurs, as often as it does."""
    analyse, vocabulary = vectorizer.build_analyzer(), vectorizer.vocabulary_

    def columns(text: str) -> Any:
        return np.array([vocabulary[term] for term in analyse(text) if term in vocabulary], dtype=np.intp)

    return columns


def word_bound_columns(vectorizer: Any) -> Columns:
    """For the analyser `char_wb`, whose terms never cross a word: a word's columns are found once, and remembered."""
    preprocess, vocabulary = vectorizer.build_preprocessor(), vectorizer.vocabulary_
    shortest, longest = vectorizer.ngram_range
    known: dict[str, Any] = {}
    nothing = np.zeros(0, dtype=np.intp)

    def of_word(word: str) -> Any:
        if len(known) >= _MOST_WORDS:
            known.clear()
        terms = word_bound_terms(word, shortest, longest)
        known[word] = found = np.array([vocabulary[t] for t in terms if t in vocabulary], dtype=np.intp)
        return found

    def columns(text: str) -> Any:
        words = [known[word] if word in known else of_word(word) for word in preprocess(text).split()]
        return np.concatenate(words) if words else nothing

    return columns


def word_bound_terms(word: str, shortest: int, longest: int) -> list[str]:
    """The character n-grams of a word between blanks; a word that is too short for a length counts once, as it is."""
    padded = f" {word} "
    terms = []
    for length in range(shortest, longest + 1):
        if length >= len(padded):
            terms.append(padded)
            break
        terms.extend(padded[start : start + length] for start in range(len(padded) - length + 1))
    return terms


class TermScorer:
    """score = Σ tf · idf · weight, divided by the norm of tf · idf; for each output."""

    def __init__(self, columns: Columns, idf: Any, weights: Any, frequency: TermFrequency) -> None:
        self._columns = columns
        self._idf = idf
        self._weights = np.ascontiguousarray(weights)
        self._frequency = frequency
        self._usual = np.array([0.0, *(frequency.of(count) for count in range(1, 64))])

    def scores(self, texts: Sequence[str]) -> Any:
        """An array of shape (texts, outputs)."""
        if len(texts) == 1:
            columns, counts = _counted(self._columns(texts[0]))
            values = self._values(columns, counts)
            return (values @ self._weights[columns] / self._norm(values))[None, :]
        found = [self._columns(text) for text in texts]
        starts = np.zeros(len(texts) + 1, dtype=np.intp)
        np.cumsum([len(columns) for columns in found], out=starts[1:])
        rows = np.repeat(np.arange(len(texts)), np.diff(starts))
        keys, counts = _counted(np.concatenate(found) + rows * len(self._idf))
        rows, columns = np.divmod(keys, len(self._idf))
        values = self._values(columns, counts)
        starts = np.searchsorted(rows, np.arange(len(texts) + 1))
        shape = (len(texts), len(self._idf))
        scores = csr_matrix((values, columns, starts), shape=shape) @ self._weights
        return scores / self._norms(values, rows, len(texts))[:, None]

    def _values(self, columns: Any, counts: Any) -> Any:
        try:
            frequencies = self._usual[counts]
        except IndexError:  # a term that occurs more often than a table need have
            frequencies = np.array([self._frequency.of(count) for count in counts.tolist()])
        return frequencies * self._idf[columns]

    def _norm(self, values: Any) -> float:
        match self._frequency.norm:
            case "l2":
                return math.sqrt(values @ values) or 1.0
            case "l1":
                return float(np.abs(values).sum()) or 1.0
        return 1.0

    def _norms(self, values: Any, rows: Any, count: int) -> Any:
        """The same for each of `count` rows."""
        if self._frequency.norm is None:
            return np.ones(count)
        sizes = values * values if self._frequency.norm == "l2" else np.abs(values)
        sums = np.bincount(rows, weights=sizes, minlength=count)
        norms = np.sqrt(sums) if self._frequency.norm == "l2" else sums
        norms[norms == 0] = 1.0
        return norms


def _counted(columns: Any) -> tuple[Any, Any]:
    """Each different number once, in order, and how often it occurs. Sorts `columns` in place."""
    if not len(columns):
        return columns, columns
    columns.sort()
    edge = np.ones(len(columns) + 1, dtype=bool)
    np.not_equal(columns[1:], columns[:-1], out=edge[1:-1])
    edges = edge.nonzero()[0]
    return columns[edges[:-1]], edges[1:] - edges[:-1]
