"""The score of a text under words and pairs of words, as one walk over its tokens.

For one output, TF-IDF and weights fold into a number for each term: a term that occurs `tf` times adds `tf² · idf²` to
the square of the norm and `tf · idf · weight` to the score. Both stand in one complex number, so that a term costs one
look-up and one addition. A pair is found in the dictionary of its first word, by its second: no string is put together,
and no hash is computed that is not known already. The walk takes every occurrence for a term of its own; the few that
repeat are set right afterwards.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from app.runtimes.politeness import breathe
from app.runtimes.tokens import Tokens

# A text in which more repeats is counted from the start: differences of large sums would lose digits.
_MANY_REPEATS = 256

Weight = complex
Followers = Mapping[str, Weight]
Words = Mapping[str, tuple[Weight, Followers]]
_NOBODY: Followers = {}


@dataclass(frozen=True, slots=True)
class TermFrequency:
    """What a term that occurs `count` times counts for, and the norm that a text's terms are divided by."""

    sublinear: bool
    binary: bool
    norm: str | None

    def of(self, count: int) -> float:
        """The term's frequency in the sense of TF-IDF."""
        return 1.0 if self.binary else 1.0 + math.log(count) if self.sublinear else float(count)

    def weigh(self, weight: Weight, count: int) -> Weight:
        """What the term adds: to the norm (its square for l2) in the real part, to the score in the imaginary one."""
        tf = self.of(count)
        return complex((tf * tf if self.norm == "l2" else tf) * weight.real, tf * weight.imag)

    def excess(self, count: int) -> tuple[float, float]:
        """What `count` occurrences add to the norm and to the score, less what they add one by one."""
        tf = self.of(count) if count else 0.0
        return (tf * tf if self.norm == "l2" else tf) - count, tf - count

    @property
    def additive(self) -> bool:
        """Whether two occurrences weigh twice as much as one."""
        return not (self.sublinear or self.binary or self.norm == "l2")


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """A vectoriser's terms with what they weigh; `sizes` are those of its n-grams, from and to."""

    vocabulary: Mapping[str, int]
    sizes: tuple[int, int]
    idf: Any
    weights: Any


def word_table(terms: Terms, skipped: frozenset[str], norm: str | None) -> Words:
    """Each word's own weight, and the weights of the pairs that it begins.

    A word may stand in pairs and have no weight itself: it was too frequent, or too rare. A vocabulary that was given
    may have terms that never occur: of other sizes, or with words that are skipped.
    """
    names: dict[str, str] = {}
    own: dict[str, Weight] = {}
    followers: dict[str, dict[str, Weight]] = {}
    idf, weights = terms.idf.tolist(), terms.weights.tolist()
    for term, column in terms.vocabulary.items():
        breathe()
        first, *second = words = term.split(" ")
        if not terms.sizes[0] <= len(words) <= terms.sizes[1] or not skipped.isdisjoint(words):
            continue
        size = idf[column]
        weight = complex({"l2": size * size, "l1": size}.get(norm or "", 0.0), size * weights[column])
        first = names.setdefault(first, first)
        if second:
            followers.setdefault(first, {})[names.setdefault(*second, *second)] = weight
        else:
            own[first] = weight
    known = own.keys() | followers.keys()
    return {name: (own.get(name, 0j), followers.get(name, _NOBODY)) for name in names if name in known}


def word_scorer(words: Words, tokens: Tokens, frequency: TermFrequency, offset: float) -> Callable[[str], float]:
    """The function from a text to its score and `offset`; everything that it needs is bound here, once.

    It is one walk, written out: a call for each token would double its time.
    """
    table, skipped, slow = tokens.table, tokens.skipped, tokens.of
    squared, additive = frequency.norm == "l2", frequency.additive
    repeated, sqrt = _repeats(words, skipped, frequency), math.sqrt

    def score(text: str) -> float:
        quick = table is not None and text.isascii()
        found = text.encode().translate(table).decode().split() if quick else slow(text)
        total = 0j
        followers = _NOBODY
        for token in found:
            if token in followers:
                total += followers[token]
            if token in words:
                weight, followers = words[token]
                total += weight
            elif token not in skipped:
                followers = _NOBODY
        if not additive:
            once = set(found)
            if len(once) < len(found):
                total = repeated(found, once, total)
        size = sqrt(total.real) if squared else total.real
        return total.imag / (size or 1.0) + offset

    return score


def _repeats(words: Words, skipped: frozenset[str], frequency: TermFrequency) -> Callable[..., Weight]:
    """The function that weighs terms which repeat as they should be, in the total of a walk.

    It takes the tokens, the set of them, which it uses up, and the total.
    """
    excess = [frequency.excess(count) for count in range(_MANY_REPEATS + 2)]
    pairs_too = any(followers for _, followers in words.values())

    def repeated(found: list[str], once: set[str], total: Weight) -> Weight:
        repeats = len(found) - len(once)
        if repeats > _MANY_REPEATS:
            return _counted([token for token in found if token not in skipped], words, frequency)
        often = _often(found, once)
        terms = [(words[token][0], count) for token, count in often.items() if token in words]
        if pairs_too and repeats > 1:  # a pair that repeats repeats two words, or one word twice
            pairs = _often_paired(found, often, skipped)
            terms += [(_pair_weight(words, *pair), count) for pair, count in pairs.items()]
        for weight, count in terms:
            size, score = excess[count]
            total += complex(size * weight.real, score * weight.imag)
        return total

    return repeated


def _often(found: list[str], once: set[str]) -> dict[str, int]:
    """The words that occur more than once, and how often."""
    often: dict[str, int] = {}
    for token in found:
        if token in once:
            once.remove(token)
        else:
            often[token] = often.get(token, 1) + 1
    return often


def _often_paired(found: list[str], often: Mapping[str, int], skipped: frozenset[str]) -> Mapping[tuple[str, str], int]:
    """The pairs that occur more than once, and how often; both of their words do."""
    pairs, before = [], ""
    for token in found:
        if token in skipped:
            continue
        if token in often:
            if before:
                pairs.append((before, token))
            before = token
        else:
            before = ""
    if len(set(pairs)) == len(pairs):
        return {}
    return {pair: count for pair, count in Counter(pairs).items() if count > 1}


def _pair_weight(words: Words, first: str, second: str) -> Weight:
    return words[first][1].get(second, 0j) if first in words else 0j


def _counted(found: list[str], words: Words, frequency: TermFrequency) -> Weight:
    """The total from counts: for texts in which much repeats, however long they are."""
    singles: dict[str, int] = {}
    for token in found:
        singles[token] = singles.get(token, 0) + 1
    pairs: dict[tuple[str, str], int] = {}
    for pair in pairwise(found):
        pairs[pair] = pairs.get(pair, 0) + 1
    total = 0j
    for token, count in singles.items():
        if token in words:
            total += frequency.weigh(words[token][0], count)
    for pair, count in pairs.items():
        total += frequency.weigh(_pair_weight(words, *pair), count)
    return total
