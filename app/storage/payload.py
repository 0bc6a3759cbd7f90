"""The JSON of a record, and its way into columns of text that hardly parses it.

Compact JSON holds no raw tab: inside of strings it is escaped. So a tab before and after each value that varies lets a
record be cut at its tabs into texts of JSON, some of which are columns as they stand. It is still ordinary JSON to
PostgreSQL and to everybody else. Measured: 1.5 µs a row, and 3.0 for parsing it and encoding its members again.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pydantic_core

from app.pipelines.base import to_json

# What does not vary much: parsed once for each text of it. All but `cached` and `error` is the same for a caller.
ABOUT = ("principal", "protocol", "model", "version", "digest", "cached", "error")
COLUMNS = ("id", "at", "request_id", *ABOUT, "latency_ms", "inputs", "output", "label", "probabilities")
PAYLOAD = (
    b'{"id":"%b","at":"%b","request_id":\t%b\t,%b,"latency_ms":\t%b\t,"inputs":\t%b\t,"output":\t%b\t,"label":\t%b\t,'
    b'"probabilities":\t%b\t}'
)
_NAMES = (',"inputs":', ',"output":', ',"label":', ',"probabilities":', "}")
_LATENCY = ',"latency_ms":'
# Where an id of 36 characters ends and a time in UTC, to the microsecond, begins.
_BETWEEN = '","at":"'
_KNOWN = 1024
_ID_BYTES = 16


def sqlite_values(records: Sequence[bytes]) -> list[Any]:
    """The columns of one record after the other, as SQLAlchemy's types store them in SQLite.

    Ids are 32 digits, times are in UTC without their zone. Raises ValueError, TypeError or KeyError for what is no
    record.
    """
    values: list[Any] = []
    for record in records:
        try:
            values += _cut(record.decode())
        except (ValueError, KeyError):
            values += _parse(record)
    return values


def _cut(record: str) -> tuple[Any, ...]:
    """Raises ValueError for a record that was put together in any other way."""
    start, request_id, about, latency_ms, n1, inputs, n2, output, n3, label, n4, shares, n5 = record.split("\t")
    if (n1, n2, n3, n4, n5) != _NAMES or start[43:51] != _BETWEEN:
        raise ValueError("not put together by this release")
    return (
        start[7:43].replace("-", ""),
        f"{start[51:61]} {start[62:77]}",
        _text(request_id),
        *_about(about),
        float(latency_ms),
        inputs,
        None if output == "null" else output,
        None if label == "null" else _text(label),
        None if shares == "null" else shares,
    )


def _text(json: str) -> Any:
    return pydantic_core.from_json(json) if "\\" in json else json[1:-1]


@lru_cache(_KNOWN)
def _about(text: str) -> tuple[Any, ...]:
    if text[:1] != "," or not text.endswith(_LATENCY):
        raise ValueError("not put together by this release")
    about = pydantic_core.from_json("{" + text[1 : -len(_LATENCY)] + "}")
    return tuple(about[name] for name in ABOUT)


def _parse(record: bytes) -> tuple[Any, ...]:
    """Any JSON with the right members: what other releases have left, and what is wrong."""
    r = pydantic_core.from_json(record, allow_inf_nan=False)
    at, identifier = r["at"], r["id"].replace("-", "")
    if len(bytes.fromhex(identifier)) != _ID_BYTES:
        raise ValueError("not a UUID")
    return (
        identifier,
        f"{at[:10]} {at[11:26]}",
        r["request_id"],
        *(r[name] for name in ABOUT),
        r["latency_ms"],
        to_json(r["inputs"]).decode(),
        _json_or_none(r["output"]),
        r["label"],
        _json_or_none(r["probabilities"]),
    )


def _json_or_none(value: Any) -> str | None:
    return None if value is None else to_json(value).decode()
