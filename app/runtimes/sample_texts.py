"""Texts on which a form has to prove itself: of words that the model knows, of none of them, and between two labels."""

from collections.abc import Callable, Sequence
from typing import Any
from unicodedata import normalize

from app.runtimes.politeness import working_clock
from app.runtimes.threads import walk_estimators

_MOST_WORDS = 30
_LONG = 1500
_PAIRS = 12
_WALKED_WORDS = 12
_ROUNDS = 4

# Curly quotes, ligatures, other scripts, a final sigma, a dotted capital I: what lower-casing and words depend on.
_ODD = (
    *("!", "?!", ".", "a", "I", "'", "0", "_", "a b c d e", "x" * 400, "1,000.50 42 42", "tab\tnew\nline\r\n"),
    *("\u200b", "\u2028", "\x1c", "\ufeff", "e\u0301", "\u212b", "\ufb01ne", "don\u2019t \u201cwon\u2019t\u201d"),
    *("\U0001f642", "\U0001f642\U0001f642 \U0001f44d\U0001f3fd", "ß", "İ", "\u0391\u03a3 \u03a3\u0391\u03a3"),
    *(
        "Ünïcödé",
        "日本語のテキスト",
        "שלום עולם",
        "مرحبا",
        "don't don't don't",
        "co-op it's O'Neil's",
        "UPPER lower MiXeD",
    ),
)


def draw_texts(estimator: Any, golden: Sequence[str], rng: Any, count: int) -> list[str]:
    """Odd ones; golden ones, changed; and words of the vocabularies in any order, repeated and among unknown words."""
    words = _known_words(estimator) or [word for text in golden for word in text.split()]
    texts = [*_ODD, *(change(text) for text in golden for change in _CHANGES)]
    while len(texts) < count:
        chosen = [words[i] for i in rng.integers(len(words), size=int(rng.integers(1, _MOST_WORDS)))]
        if rng.random() < 0.5:  # noqa: PLR2004 -- half of them
            chosen += [chosen[i] for i in rng.integers(len(chosen), size=int(rng.integers(1, 6)))]
        if rng.random() < 0.3:  # noqa: PLR2004 -- some of them
            chosen.insert(len(chosen) // 2, "qxzunknown")
        texts.append(" ".join(chosen))
    long = " ".join(words[i] for i in rng.integers(len(words), size=_LONG))
    return [*texts[:count], long]


_CHANGES: tuple[Callable[[str], str], ...] = (
    str.upper,
    lambda text: text[::-1],
    lambda text: f"{text} {text} {text}",
    lambda text: " ".join(reversed(text.split())),
    lambda text: normalize("NFD", text) + " é",
    lambda text: text.replace(" ", ", "),
    lambda text: text[: len(text) // 3],
)


def _known_words(estimator: Any) -> list[str]:
    """Every 29th and the like: some 2,000 terms of all vocabularies in the estimator."""
    terms: list[str] = []
    for inner in walk_estimators(estimator):
        vocabulary = getattr(inner, "vocabulary_", None)
        if isinstance(vocabulary, dict):
            terms.extend(term for term in vocabulary if isinstance(term, str) and term.strip())
    return sorted(set(terms[:: len(terms) // 2000 + 1]))


def texts_at_the_boundary(
    texts: Sequence[str], labels: Callable[[Sequence[str]], list[Any]], rng: Any, deadline: float
) -> list[str]:
    """Walk from a text of one label to one of another, word by word: the two texts between which the label turns.

    Then between those, by taking single words out, again and again: so the scores come close to where it turns.
    """
    found = labels(texts)
    pairs = [
        (text, other)
        for text, label in zip(texts, found, strict=True)
        if (other := next((t for t, seen in zip(texts, found, strict=True) if seen != label), None)) is not None
    ][: _PAIRS * 4 : 4]
    boundary: list[str] = []
    for _ in range(_ROUNDS):
        ways = [_way(one.split()[:_WALKED_WORDS], other.split()[:_WALKED_WORDS], rng) for one, other in pairs]
        if not ways or working_clock() > deadline:
            break
        turned = iter(labels([text for way in ways for text in way]))
        pairs = []
        for way in ways:
            seen = [next(turned) for _ in way]
            turns = [i for i in range(1, len(way)) if seen[i] != seen[i - 1]]
            pairs.extend((way[i - 1], way[i]) for i in turns[:2])
        pairs = pairs[: 2 * _PAIRS]
        boundary.extend(text for pair in pairs for text in pair)
    return boundary


def _way(one: list[str], other: list[str], rng: Any) -> list[str]:
    """From `one` to `other`: words of the second come in, in any order, then those of the first go."""
    steps = [" ".join(one)]
    current = list(one)
    for i in rng.permutation(len(other)):
        current.append(other[i])
        steps.append(" ".join(current))
    for _ in range(len(one)):
        current.pop(int(rng.integers(len(current))) if len(current) > len(other) else 0)
        steps.append(" ".join(current))
    return [step for step in [*steps, " ".join(other)] if step]
