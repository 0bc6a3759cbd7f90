"""Folded text: TF-IDF and a linear model as a table of term weights; the same answers without the sparse matrices.

What scikit-learn spends on one text is almost all overhead: 583 µs, of which this form needs five.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.errors import ModelFailed
from app.pipelines.base import RawOutput
from app.runtimes.folding import Branch, NotFoldable, fold, kind_of, through
from app.runtimes.heads import Head, answer_values, averaged
from app.runtimes.sklearn import SklearnRuntime
from app.runtimes.terms import TermScorer, analysed_columns, word_bound_columns
from app.runtimes.tokens import tokens_of
from app.runtimes.words import TermFrequency, Terms, word_scorer, word_table

_WORDS_AND_PAIRS = ((1, 1), (1, 2), (2, 2))


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One vectoriser, with the TfidfTransformer behind it, and the weight that a FeatureUnion gives it."""

    vectorizer: Any
    tfidf: Any
    weight: float

    @property
    def columns(self) -> int:
        return len(self.vectorizer.vocabulary_)


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """What several branches have in common: the parts, and their weights and offsets side by side."""

    parts: tuple[_Part, ...]
    weights: Any
    offset: Any


def build_text(reference: SklearnRuntime) -> "FoldedText":
    """Raises NotFoldable, with the reason."""
    return fold_text(reference.estimator)


def fold_text(estimator: Any) -> "FoldedText":
    """Raises NotFoldable, with the reason."""
    groups: list[list[Branch]] = []
    for branch in fold(estimator):
        if not branch.steps:
            raise NotFoldable("it takes no texts")
        group = next((g for g in groups if _same_steps(g[0].steps, branch.steps)), None)
        if group is None:
            groups.append([branch])
        else:
            group.append(branch)
    members = [(branch.head, branch.weights.shape[1]) for group in groups for branch in group]
    return FoldedText([_source(group) for group in groups], averaged(members))


def _same_steps(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _source(branches: Sequence[Branch]) -> _Source:
    """Carry the weights of all branches through their common steps, back to the vectorisers."""
    weights = np.hstack([branch.weights for branch in branches])
    offset = np.concatenate([branch.offset for branch in branches])
    first, *rest = branches[0].steps
    tfidf = None
    if rest and kind_of(rest[0]) == "TfidfTransformer":
        tfidf, *rest = rest
    for step in reversed(rest):
        weights, offset = through(step, weights, offset)
    return _Source(_parts(first, tfidf, 1.0), weights, offset)


def _parts(step: Any, tfidf: Any, weight: float) -> tuple[_Part, ...]:
    match kind_of(step):
        case "FeatureUnion" if tfidf is None:
            shares = step.transformer_weights or {}
            kept = [(name, part) for name, part in step.transformer_list if part != "drop"]
            return tuple(p for name, part in kept for p in _parts(part, None, weight * shares.get(name, 1.0)))
        case "Pipeline" if tfidf is None:
            steps = [part for _, part in step.steps if part not in (None, "passthrough")]
            if len(steps) == 1:
                return _parts(steps[0], None, weight)
            if len(steps) == 2 and kind_of(steps[1]) == "TfidfTransformer":  # noqa: PLR2004
                return _parts(steps[0], steps[1], weight)
        case "TfidfVectorizer" if tfidf is None:
            return (_part(step, step._tfidf, weight),)  # noqa: SLF001 -- the transformer that it is made of
        case "CountVectorizer":
            return (_part(step, tfidf, weight),)
    raise NotFoldable(f"{type(step).__name__} does not fold")


def _part(vectorizer: Any, tfidf: Any, weight: float) -> _Part:
    for name in ("preprocessor", "tokenizer"):
        if getattr(vectorizer, name) is not None:
            raise NotFoldable(f"its {name} is code of its own")
    if callable(vectorizer.analyzer) or callable(vectorizer.strip_accents):
        raise NotFoldable("its analyzer is code of its own")
    if vectorizer.input != "content":
        raise NotFoldable(f"it reads its texts from a {vectorizer.input}")
    if np.dtype(vectorizer.dtype) not in (np.float64, np.int64):
        raise NotFoldable(f"it computes in {np.dtype(vectorizer.dtype)}")
    return _Part(vectorizer, tfidf, weight)


class FoldedText:
    """The runtime: from texts to scores by part, and from scores to answers by the head of each branch."""

    name = "folded text"
    steady = True

    def __init__(self, sources: Sequence[_Source], head: Head | None) -> None:
        single = len(sources) == 1 and sources[0].weights.shape[1] == 1 and (head is None or head.plain)
        self._head = head
        self._score = _single_output(sources[0]) if single else None
        self._scorers = [] if single else [_any_outputs(source) for source in sources]

    def predict(self, inputs: Sequence[str], rows: int) -> RawOutput:
        """Answer for `rows` texts. Raises ModelFailed for an answer that is not finite."""
        if len(inputs) != rows:
            raise ModelFailed("the model answered another number of rows than it was asked")
        if self._score is not None:
            scores = self._score(inputs)
            return answer_values(scores) if self._head is None else self._head.answer_one_output(scores)
        found = [scorer(inputs) for scorer in self._scorers]
        assert self._head is not None  # noqa: S101 -- a regression has one output
        return self._head.answer(found[0] if len(found) == 1 else np.hstack(found))


def _single_output(source: _Source) -> Callable[[Sequence[str]], list[float]]:
    """For one output: floats, part by part."""
    offset = float(source.offset[0])
    parts = _with_weights(source)
    if len(parts) == 1 and (only := _words(*parts[0], offset)) is not None:
        return lambda texts: list(map(only, texts))
    scorers = [_words(part, weights, 0.0) or _term_scorer(part, weights) for part, weights in parts]

    def scores(texts: Sequence[str]) -> list[float]:
        total = [offset] * len(texts)
        for scorer in scorers:
            found = scorer.scores(texts)[:, 0].tolist() if isinstance(scorer, TermScorer) else map(scorer, texts)
            total = [a + b for a, b in zip(total, found, strict=True)]
        return total

    return scores


def _any_outputs(source: _Source) -> Callable[[Sequence[str]], Any]:
    scorers = [_term_scorer(part, weights).scores for part, weights in _with_weights(source)]
    offset = source.offset
    return lambda texts: sum((scores(texts) for scores in scorers), offset)


def _with_weights(source: _Source) -> list[tuple[_Part, Any]]:
    """Each part with its rows of the weights, the part's own weight multiplied in."""
    if sum(part.columns for part in source.parts) != len(source.weights):
        raise NotFoldable("vocabulary and weights differ in length")
    found, start = [], 0
    for part in source.parts:
        found.append((part, source.weights[start : start + part.columns] * part.weight))
        start += part.columns
    return found


def _words(part: _Part, weights: Any, offset: float) -> Callable[[str], float] | None:
    """The function of one text for words and pairs of words; None for other terms."""
    vectorizer = part.vectorizer
    sizes = tuple(vectorizer.ngram_range)
    if vectorizer.analyzer != "word" or sizes not in _WORDS_AND_PAIRS:
        return None
    tokens = tokens_of(vectorizer)
    if not tokens.blankless:
        return None
    frequency = _frequency(part)
    terms = Terms(vectorizer.vocabulary_, sizes, _idf(part), weights[:, 0])
    return word_scorer(word_table(terms, tokens.skipped, frequency.norm), tokens, frequency, offset)


def _term_scorer(part: _Part, weights: Any) -> TermScorer:
    columns = word_bound_columns if part.vectorizer.analyzer == "char_wb" else analysed_columns
    return TermScorer(columns(part.vectorizer), _idf(part), weights, _frequency(part))


def _frequency(part: _Part) -> TermFrequency:
    tfidf = part.tfidf
    if tfidf is None:
        return TermFrequency(sublinear=False, binary=part.vectorizer.binary, norm=None)
    return TermFrequency(tfidf.sublinear_tf, part.vectorizer.binary, tfidf.norm)


def _idf(part: _Part) -> Any:
    if part.tfidf is None or not part.tfidf.use_idf:
        return np.ones(part.columns)
    return np.asarray(part.tfidf.idf_, dtype=np.float64)
