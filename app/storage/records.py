"""What the log keeps of an answered row: one JSON object with the columns of the table `predictions`."""

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from app.config import StorageSettings
from app.errors import FieldError
from app.manifest import Label, LogRules, Manifest
from app.pipelines.base import Prediction, Row, to_json
from app.storage.journal import frame

Outcome = Prediction | FieldError


@dataclass(slots=True)
class Origin:
    """Who asked, by which request, over which protocol."""

    request_id: str
    principal: str
    protocol: str


class Recorder:
    """Makes the records of one version of a model, by the model's rules."""

    def __init__(self, manifest: Manifest, rules: LogRules, key: bytes) -> None:
        fixed = {"model": manifest.name, "version": manifest.version, "digest": manifest.artefact.sha256}
        self._fixed = to_json(fixed)[1:-1]
        self._classifies = bool(manifest.outputs.labels)
        self._keep = {field.name: rules.fields.get(field.name, rules.default) for field in manifest.fields}
        self._keeps_all = all(keep == "store" for keep in self._keep.values())
        self._key = key
        self._of_label: dict[tuple[type, Label | float], bytes] = {}

    def frames(
        self,
        ids: Sequence[str],
        rows: Sequence[Row],
        outcomes: Sequence[Outcome],
        origin: Origin,
        latency_ms: float,
        *,
        cached: bool = False,
    ) -> bytes:
        """The journal's lines for rows of one request, each with its id and what came of it.

        Put together from parts that are JSON already: as one document, each would cost twice as much.
        """
        shared = b'"at":"%s","request_id":%s,"principal":%s,%s,"protocol":"%s","latency_ms":%s,"cached":%s' % (
            datetime.now(UTC).isoformat(timespec="microseconds").encode(),
            to_json(origin.request_id),
            to_json(origin.principal),
            self._fixed,
            origin.protocol.encode(),
            to_json(latency_ms),
            b"true" if cached else b"false",
        )
        return b"".join(
            [
                frame(
                    b'{"id":"%s",%s,"inputs":%s,%s}' % (i.encode(), shared, self._inputs(row), self._outputs(outcome))
                )
                for i, row, outcome in zip(ids, rows, outcomes, strict=True)
            ]
        )

    def _inputs(self, row: Row) -> bytes:
        return to_json(row if self._keeps_all else self._kept(row))

    def _kept(self, row: Row) -> Mapping[str, Any]:
        if self._keeps_all:
            return row
        return {
            name: value if self._keep[name] == "store" else self._hashed(name, value)
            for name, value in row.items()
            if self._keep[name] != "drop"
        }

    def _hashed(self, name: str, value: Any) -> str:
        """Equal values of one field have equal hashes; without the key, nobody can try values out."""
        digest = hmac.new(self._key, to_json([name, value]), hashlib.sha256)
        return f"hmac-sha256:{digest.hexdigest()}"

    def _outputs(self, outcome: Outcome) -> bytes:
        if isinstance(outcome, FieldError):
            return b'"output":null,"label":null,"probabilities":null,"error":%s' % to_json(outcome.code)
        return b'%s,"probabilities":%s,"error":null' % (self._said(outcome.value), to_json(outcome.probabilities))

    def _said(self, value: Label | float) -> bytes:
        if not self._classifies:
            return b'"output":%s,"label":null' % to_json(value)
        key = (type(value), value)  # 1 equals True, and is another label
        said = self._of_label.get(key)
        if said is None:
            said = self._of_label[key] = b'"output":%s,"label":%s' % (to_json(value), to_json(str(value)))
        return said


def hash_key(settings: StorageSettings) -> bytes:
    """The key of hashed fields: the setting, or one of our own beside the journal, made on first need.

    Raises OSError when there is none and none can be written.
    """
    given = settings.log_hash_key.get_secret_value()
    if given:
        return given.encode()
    path = settings.journal_dir.parent / "log-hash.key"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(descriptor, "wb") as file:
        key = secrets.token_hex(32).encode()
        file.write(key)
    return key
