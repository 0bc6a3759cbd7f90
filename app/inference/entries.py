"""Entries: what the cache calls a row, and what it keeps of the row's answer.

A key is a digest of everything that the answer follows from: the artefact's own digest, what of the manifest decides
how a row is put before the estimator and how its answer is worded, and the row's values with their types. No name and
no alias is in it, so pointing an alias elsewhere needs nothing to be deleted.
"""

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from app.manifest import Label, Manifest
from app.pipelines.base import Prediction, Row, to_json

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

# The value, and the probability of each label in the manifest's order. Nothing in it can be changed, so requests may
# have it in common.
Entry = tuple[Label | float, tuple[float, ...] | None]

_FORMAT = 1
_METHOD = "predict"
_DIGEST_BYTES = 32
# Of an entry in memory, with its key and its place: measured with tracemalloc, and so is what a probability adds.
_ENTRY_BYTES = 400
_PROBABILITY_BYTES = 32
_NUMBER_CHARACTERS = 32


class Entries:
    """Keys and entries of one version of a model."""

    def __init__(self, model: "LoadedModel") -> None:
        manifest, outputs = model.manifest, model.manifest.outputs
        self.private = model.cache_rules.cache == "private"
        self._identity = model.pipeline.identity
        self._prefix = blake2b(to_json(_meaning(manifest)), digest_size=_DIGEST_BYTES)
        self._classifies = bool(outputs.labels)
        # By type, too: to Python, True is 1.
        self._labels = {(type(label), label): label for label in outputs.labels}
        self._texts = tuple(str(label) for label in outputs.labels)
        self._probabilities = outputs.probabilities
        self.bytes = _ENTRY_BYTES + _PROBABILITY_BYTES * len(self._texts) * self._probabilities
        longest = max((len(to_json(label)) for label in outputs.labels), default=0)
        self._longest = longest + 2 * _DIGEST_BYTES + _NUMBER_CHARACTERS * (4 + len(self._texts))

    def keys(self, rows: Sequence[Row], subject: str) -> list[bytes]:
        """A key for each row, 32 bytes; `subject` is part of it where the model is private."""
        return [self._key(row, subject) for row in rows]

    def _key(self, row: Row, subject: str) -> bytes:
        values = self._identity(row)
        digest = self._prefix.copy()
        # JSON tells 1, 1.0 and true apart, as well as null and "null"; and an array ends where it ends, so that no row
        # with a subject is one without.
        digest.update(to_json([subject, *values] if self.private else values))
        return digest.digest()

    def pack(self, prediction: Prediction) -> Entry | None:
        """What is kept of an answer; None for one that could not be read back."""
        value, shares = prediction.value, prediction.probabilities
        known = (type(value), value) in self._labels if self._classifies else type(value) is float
        if not known or (shares is not None) != self._probabilities:
            return None
        if shares is None:
            return value, None
        return (value, tuple(shares.values())) if tuple(shares) == self._texts else None

    def unpack(self, entry: Entry) -> Prediction:
        """The answer, as one that nobody else holds."""
        value, shares = entry
        return Prediction(value, None if shares is None else dict(zip(self._texts, shares, strict=True)))

    def encode(self, key: bytes, entry: Entry, made_ms: int) -> bytes:
        """For Redis: a JSON array of format, key, time of making (Unix, milliseconds), value and probabilities."""
        return to_json([_FORMAT, key.hex(), made_ms, *entry])

    def decode(self, key: bytes, raw: bytes) -> tuple[Entry, int] | None:
        """Entry and time of making; None for anything that this model could not have answered to that very key.

        The key is in the value since a connection that has lost count of its answers hands out other callers' values.
        """
        if len(raw) > self._longest:
            return None
        try:
            format_, owner, made_ms, value, shares = from_json(raw, allow_inf_nan=False)
        except (ValueError, TypeError):
            return None
        if format_ != _FORMAT or owner != key.hex() or type(made_ms) is not int:
            return None
        known = self._known(value)
        if known is None or not self._complete(shares):
            return None
        return (known, None if shares is None else tuple(shares)), made_ms

    def _known(self, value: Any) -> Label | float | None:
        if self._classifies:
            return self._labels.get((type(value), value)) if isinstance(value, bool | int | str) else None
        return value if _is_finite(value) else None

    def _complete(self, shares: Any) -> bool:
        if not self._probabilities:
            return shares is None
        return isinstance(shares, list) and len(shares) == len(self._texts) and all(map(_is_finite, shares))


def _is_finite(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _meaning(manifest: Manifest) -> list[Any]:
    """All that an answer follows from, but for the row."""
    fields = [[f.name, f.dtype, f.missing, f.categories] for f in manifest.fields]
    outputs = manifest.outputs
    artefact = [manifest.artefact.sha256, manifest.artefact.container, manifest.task]
    return [_FORMAT, _METHOD, artefact, fields, outputs.labels, outputs.probabilities]
