"""No pattern of ours takes much longer than its input is long: none can be made to search for ever."""

import importlib
import inspect
import pkgutil
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

import app

_SHORT, _LONG = 2_000, 20_000
# Ten times the input may take fifteen times as long; what takes less than this is quick whatever the ratio.
_RATIO = 15
_QUICK_SECONDS = 0.01


def _patterns() -> dict[str, re.Pattern[Any]]:
    """Every compiled pattern of every module, in its globals and in its classes."""
    found: dict[str, re.Pattern[Any]] = {}
    for module in pkgutil.walk_packages(app.__path__, "app."):
        if module.name not in {"app.main", "app.__main__"}:  # importing those does something
            namespace = vars(importlib.import_module(module.name))
            found.update(_patterns_in(namespace, module.name))
    return found


def _patterns_in(namespace: dict[str, Any], place: str) -> Iterator[tuple[str, re.Pattern[Any]]]:
    for name, value in namespace.items():
        pattern = getattr(value, "__self__", value)  # some keep only the pattern's `match`
        if isinstance(pattern, re.Pattern):
            yield f"{place}.{name}", pattern
        elif isinstance(value, type) and value.__module__ == place:
            yield from _patterns_in(dict(vars(value)), f"{place}.{name}")


PATTERNS = _patterns()
PIECES = [
    "a",
    "1",
    " ",
    "\t",
    "-",
    "_",
    ".",
    ",",
    ":",
    "/",
    '"',
    "[",
    "(",
    "a.",
    "a,",
    "a=",
    "1:",
    " ;",
    "é",
    "<script>",
    "Aa0_",
]
ENDS = ["", "!", "\n", "\x00"]


def test_the_patterns_are_found() -> None:
    """As many as there are lines that make one, or nearly."""
    assert len(PATTERNS) >= 12
    assert any(isinstance(pattern.pattern, bytes) for pattern in PATTERNS.values())


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_a_pattern_takes_time_in_proportion(pattern: re.Pattern[Any], request: pytest.FixtureRequest) -> None:
    """To match, whole or not, and to search where that is done; on long runs, with an end that does not fit."""
    place, _, name = request.node.callspec.id.rpartition(".")
    searched = re.search(rf"{name}\.(search|findall|finditer|split|sub)\(", _source(place))
    for piece in PIECES:
        for end in ENDS:
            for method in (pattern.match, pattern.fullmatch, *((pattern.search,) if searched else ())):
                long = _seconds(method, _text(pattern, piece, end, _LONG))
                if long > _QUICK_SECONDS:
                    short = _seconds(method, _text(pattern, piece, end, _SHORT))
                    assert long < _RATIO * max(short, 1e-4), (piece, end, method.__name__)


def _source(place: str) -> str:
    """Of the module, or the module that has the class."""
    module = place if place in sys.modules else place.rpartition(".")[0]
    return inspect.getsource(sys.modules[module])


def _text(pattern: re.Pattern[Any], piece: str, end: str, length: int) -> Any:
    text = (piece * length)[:length] + end
    return text.encode() if isinstance(pattern.pattern, bytes) else text


def _seconds(method: Any, text: Any) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        method(text)
        best = min(best, time.perf_counter() - started)
        if best < _QUICK_SECONDS:
            break
    return best
