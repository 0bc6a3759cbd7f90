"""Heads: what the head of a request has been found to say, for when the same bytes come again.

A client writes the same head again and again; parsing it costs as much as the rest of a small request's way through the
wire. Bytes that were parsed and found sound mean the same the next time: nothing in a head depends on what came before.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from app.api.exchange import HEAD, ShortWay, head

_MOST_HEADS = 2048
_LONGEST_HEAD = 4096
_KEPT = ("http_version", "method", "path", "raw_path", "query_string", "headers", HEAD)
_END = b"\r\n\r\n"


# What begins a request without a task: its scope, its wire, and the set of what is being answered.
Begin = Callable[[Scope, ShortWay, set[Any]], None]


@dataclass(frozen=True, slots=True)
class Head:
    """Of a request that had nothing special: HTTP/1.1, kept alive, its body counted by Content-Length."""

    scope: dict[str, Any]  # what does not depend on the connection
    body_bytes: int
    begin: Begin | None


class KnownHeads:
    """The heads that came last, in all connections of a process."""

    def __init__(self, straight: Callable[[Scope], Begin | None]) -> None:
        """`straight` tells how a request with such a head may begin, or that it needs the application's own way in."""
        self._straight = straight
        self._heads: OrderedDict[bytes, Head] = OrderedDict()

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """The head and the body when `data` is exactly one request whose head is known."""
        end = data.find(_END, 0, _LONGEST_HEAD)
        known = self._heads.get(data[: end + 4]) if end > 0 else None
        if known is None or len(data) != end + 4 + known.body_bytes:
            return None
        return known, data[end + 4 :]

    def remember(self, data: bytes, scope: dict[str, Any]) -> None:
        """`data` was one whole request, and no more; `scope` is what was made of it."""
        end = data.find(_END, 0, _LONGEST_HEAD)
        if end < 0 or not _is_plain(scope):
            return
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if len(data) != end + 4 + int(length):
            return
        head(scope)  # so that it is there the next time
        kept = {name: scope[name] for name in _KEPT}
        self._heads[data[: end + 4]] = Head(kept, int(length), self._straight(scope))
        if len(self._heads) > _MOST_HEADS:
            self._heads.popitem(last=False)


def _is_plain(scope: dict[str, Any]) -> bool:
    special = {b"upgrade", b"expect", b"transfer-encoding"}
    return scope["http_version"] == "1.1" and not any(
        name in special or (name == b"connection" and value.lower() != b"keep-alive")
        for name, value in scope["headers"]
    )
