"""Pipeline: what stands between a caller's JSON and a fitted estimator, the same in training and in serving."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic_core
from pydantic import TypeAdapter, ValidationError

from app.errors import FieldError
from app.manifest import Label, Manifest
from app.pipelines.rows import field_errors, row_type

Row = Mapping[str, Any]
Wrap = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer: a label with the probability of each (None where the estimator has none), or a number."""

    value: Label | float
    probabilities: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class RawOutput:
    """What a runtime answers for n rows, as arrays or, where that is faster, as plain lists.

    A classifier: `classes`, the index of each row's class, shape (n,), and `probabilities` of shape (n, classes) or
    None. A regression: `values` of shape (n,).
    """

    classes: Any = None
    probabilities: Any = None
    values: Any = None


class Pipeline(ABC):
    """Validation, preprocess and postprocess of one version, from its manifest.

    A row is a dict from field name to a JSON value. Validation is separate from preprocess, since a bad row must leave
    before the good ones are put together.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.names = tuple(field.name for field in manifest.fields)
        self.row_type = row_type(manifest.fields, title=schema_name(manifest, "Inputs"))
        self._validators: dict[Wrap, TypeAdapter[Any]] = {}
        self._row = TypeAdapter(self.row_type).validator.validate_python
        self._labels = manifest.outputs.labels
        self._label_texts = [str(label) for label in manifest.outputs.labels]

    def validator(self, wrap: Wrap) -> TypeAdapter[Any]:
        """The adapter for `wrap(row type)`, such as the body of a request around a row; made once."""
        adapter = self._validators.get(wrap)
        if adapter is None:
            adapter = self._validators[wrap] = TypeAdapter(wrap(self.row_type))
        return adapter

    def validate(self, candidates: Sequence[Any]) -> list[Row | FieldError]:
        """Each candidate as a row, or the first thing that is wrong with it, with its position."""
        return [self._validate_one(candidate, position) for position, candidate in enumerate(candidates)]

    def _validate_one(self, candidate: Any, position: int) -> Row | FieldError:
        try:
            row: Row = self._row(candidate)
        except ValidationError as error:
            return field_errors(error, self.names, row=position, most=1)[0]
        return row

    def identity(self, row: Row) -> list[Any]:
        """What tells a validated row from others: rows with the same values here, types included, get one answer."""
        return [row.get(name) for name in self.names]

    def weigh(self, rows: Sequence[Row]) -> list[float]:
        """How many rows of usual size each is worth to the model; at least one."""
        return [1.0] * len(rows)

    @abstractmethod
    def preprocess(self, rows: Sequence[Row]) -> Any:
        """Validated rows → what the estimator takes (see `Artefact.container`)."""

    def postprocess(self, raw: RawOutput) -> list[Prediction]:
        """What the runtime answered, as one Prediction for each row, in order."""
        if raw.values is not None:
            return [Prediction(value) for value in _plain(raw.values)]
        labels = self._labels
        if raw.probabilities is None:
            return [Prediction(labels[index]) for index in _plain(raw.classes)]
        texts = self._label_texts
        return [
            Prediction(labels[index], dict(zip(texts, shares, strict=True)))
            for index, shares in zip(_plain(raw.classes), _plain(raw.probabilities), strict=True)
        ]


def _plain(answer: Any) -> list[Any]:
    found: list[Any] = answer if type(answer) is list else answer.tolist()
    return found


def schema_name(manifest: Manifest, suffix: str) -> str:
    """A name for a version's types in the OpenAPI document: `breast-cancer` 1 → `breast_cancer_v1_Inputs`."""
    return f"{manifest.name.replace('-', '_')}_v{manifest.version}_{suffix}"


def to_json(value: Any) -> bytes:
    """Any JSON value as compact bytes; NaN cannot occur, since postprocessing refuses it."""
    return pydantic_core.to_json(value)
