"""What the log keeps of an answered row: one JSON object with the columns of the table `predictions`."""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from app.config import StorageSettings
from app.errors import FieldError
from app.manifest import LogRules, Manifest
from app.pipelines.base import Prediction, Row, to_json
from app.storage.journal import frame


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asked, by which request, over which protocol."""

    request_id: str
    principal: str
    protocol: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A row that a model was asked about, and what came of it; `cached` if the model had been asked before."""

    id: str
    row: Row
    outcome: Prediction | FieldError
    cached: bool = False


class Recorder:
    """Makes the records of one version of a model, by the model's rules."""

    def __init__(self, manifest: Manifest, rules: LogRules, key: bytes) -> None:
        self._fixed = {"model": manifest.name, "version": manifest.version, "digest": manifest.artefact.sha256}
        self._classifies = bool(manifest.outputs.labels)
        self._keep = {field.name: rules.fields.get(field.name, rules.default) for field in manifest.fields}
        self._keeps_all = all(keep == "store" for keep in self._keep.values())
        self._key = key

    def frames(self, rows: Iterable[Answered], origin: Origin, latency_ms: float) -> bytes:
        """The journal's lines for rows of one request."""
        shared = {
            "at": datetime.now(UTC).isoformat(timespec="microseconds"),
            "request_id": origin.request_id,
            "principal": origin.principal,
            **self._fixed,
            "protocol": origin.protocol,
            "latency_ms": latency_ms,
        }
        return b"".join(
            frame(
                to_json(
                    {
                        "id": row.id,
                        **shared,
                        "cached": row.cached,
                        "inputs": self._kept(row.row),
                        **self._outputs(row.outcome),
                    }
                )
            )
            for row in rows
        )

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

    def _outputs(self, outcome: Prediction | FieldError) -> dict[str, Any]:
        if isinstance(outcome, FieldError):
            return {"output": None, "label": None, "probabilities": None, "error": outcome.code}
        label = str(outcome.value) if self._classifies else None
        return {"output": outcome.value, "label": label, "probabilities": outcome.probabilities, "error": None}


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
