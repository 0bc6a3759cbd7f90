"""The log as files: one prediction at a time goes in, so that a file may be larger than the memory.

`jsonl` has one object a line, as `GET /v2/predictions` shows it. `csv` and `parquet` have one row for each prediction,
with what is nested in it as JSON. Nothing is altered on the way: a text that begins with `=` does so in the CSV file
too, and a spreadsheet that is told to import such columns as anything but text may take it for a formula.
"""

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from typing import Any, BinaryIO, Literal

from app.errors import OperatorError
from app.pipelines.base import to_json
from app.storage.queries import LoggedPrediction

Format = Literal["jsonl", "csv", "parquet"]
Write = Callable[[LoggedPrediction], object]

# Rows that are held before they become a row group of a Parquet file.
_GROUP_ROWS = 10_000
_COLUMNS = (
    "id",
    "time",
    "request_id",
    "principal",
    "model",
    "version",
    "digest",
    "protocol",
    "inputs",
    "prediction",
    "label",
    "probabilities",
    "latency_ms",
    "cached",
    "error",
    "truth",
    "truth_time",
    "truth_revisions",
)


@contextmanager
def opened(kind: Format, file: BinaryIO) -> Iterator[Write]:
    """What writes one prediction after the other to the file, which is complete when the block ends.

    Raises OperatorError where the format needs a library that is not installed.
    """
    with _WRITERS[kind](file) as write:
        yield write


@contextmanager
def _jsonl(file: BinaryIO) -> Iterator[Write]:
    yield lambda prediction: file.write(to_json(_document(prediction)) + b"\n")


@contextmanager
def _csv(file: BinaryIO) -> Iterator[Write]:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    yield lambda prediction: writer.writerow(_csv_row(prediction))
    text.flush()
    text.detach()  # the file is the caller's to close


@contextmanager
def _parquet(file: BinaryIO) -> Iterator[Write]:
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise OperatorError(
            "the format parquet needs pyarrow, which the service itself does not: pip install pyarrow"
        ) from None
    schema = _schema(arrow)
    rows: list[tuple[Any, ...]] = []
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:

        def flush() -> None:
            columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in _COLUMNS]
            writer.write_table(arrow.table(columns, schema=schema))
            rows.clear()

        def write(prediction: LoggedPrediction) -> None:
            rows.append(_flat(prediction))
            if len(rows) >= _GROUP_ROWS:
                flush()

        yield write
        flush()


_WRITERS: dict[Format, Any] = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}


def _schema(arrow: Any) -> Any:
    kinds = {
        "time": arrow.timestamp("us", tz="UTC"),
        "truth_time": arrow.timestamp("us", tz="UTC"),
        "version": arrow.int64(),
        "truth_revisions": arrow.int64(),
        "latency_ms": arrow.float64(),
        "cached": arrow.bool_(),
    }
    return arrow.schema([(name, kinds.get(name, arrow.string())) for name in _COLUMNS])


def _document(prediction: LoggedPrediction) -> dict[str, Any]:
    known = prediction.feedback
    return {
        "id": prediction.id,
        "time": prediction.at,
        "request_id": prediction.request_id,
        "principal": prediction.principal,
        "model": prediction.model,
        "version": prediction.version,
        "digest": prediction.digest,
        "protocol": prediction.protocol,
        "inputs": prediction.inputs,
        "prediction": prediction.output,
        "probabilities": prediction.probabilities,
        "latency_ms": prediction.latency_ms,
        "cached": prediction.cached,
        "error": prediction.error,
        "feedback": known
        and {
            "truth": known.truth,
            "time": known.at,
            "received_at": known.received_at,
            "principal": known.principal,
            "revisions": known.revisions,
        },
    }


def _flat(prediction: LoggedPrediction) -> tuple[Any, ...]:
    """A cell for each column; what may be of any type is JSON, so that "1" and 1 stay apart."""
    known = prediction.feedback
    return (
        str(prediction.id),
        prediction.at,
        prediction.request_id,
        prediction.principal,
        prediction.model,
        prediction.version,
        prediction.digest,
        prediction.protocol,
        _json(prediction.inputs),
        _json(prediction.output),
        prediction.label,
        _json(prediction.probabilities),
        prediction.latency_ms,
        prediction.cached,
        prediction.error,
        _json(known.truth if known else None),
        known.at if known else None,
        known.revisions if known else None,
    )


def _csv_row(prediction: LoggedPrediction) -> list[Any]:
    return [_csv_cell(cell) for cell in _flat(prediction)]


def _csv_cell(cell: Any) -> Any:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return cell.isoformat().replace("+00:00", "Z") if isinstance(cell, datetime) else cell


def _json(value: Any) -> str | None:
    return None if value is None else to_json(value).decode()
