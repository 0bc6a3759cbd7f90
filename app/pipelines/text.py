"""Models of one text: the estimator takes a list of strings."""

from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

from app.manifest import Manifest
from app.pipelines.base import Pipeline, Row


class TextPipeline(Pipeline):
    """`{"text": "…"}` → the text in Unicode's composed form, so that "é" is one character however it was typed."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._name = self.names[0]
        # A version's cost is measured on its golden rows, and a text costs by its length.
        lengths = [len(str(row.inputs.get(self._name, ""))) for row in manifest.golden.rows]
        self._usual_length = max(1.0, sum(lengths) / len(lengths))

    def weigh(self, rows: Sequence[Row]) -> list[float]:
        """By the length of the text."""
        name, usual = self._name, self._usual_length
        return [max(1.0, len(row[name]) / usual) for row in rows]

    def preprocess(self, rows: Sequence[Row]) -> list[str]:
        """The text of each row."""
        name = self._name
        return [text if (text := row[name]).isascii() else normalize("NFC", text) for row in rows]

    def identity(self, row: Row) -> list[Any]:
        """The text as the estimator gets it."""
        text = row.get(self._name)
        return [normalize("NFC", text) if isinstance(text, str) else text]
