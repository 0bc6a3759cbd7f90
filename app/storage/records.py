"""What the log keeps of an answered row: one JSON object with the columns of the table `predictions`."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from pydantic_core import to_json

from app.config import StorageSettings
from app.errors import FieldError
from app.manifest import Label, LogRules, Manifest
from app.pipelines.base import Prediction, Row
from app.storage.lines import frame
from app.storage.payload import PAYLOAD, SHARED
from app.storage.secret_file import make_secret

Outcome = Prediction | FieldError
_NULL = b"null"
_KNOWN = 1024


@dataclass(slots=True)
class Origin:
    """Who asked, by which request, over which protocol."""

    request_id: str
    principal: str
    protocol: str


class Recorder:
    """Makes the records of one version of a model, by the model's rules."""

    def __init__(self, manifest: Manifest, rules: LogRules, key: bytes) -> None:
        self._model, self._version, self._digest = manifest.name, manifest.version, manifest.artefact.sha256
        self._classifies = bool(manifest.outputs.labels)
        self._keep = {field.name: rules.fields.get(field.name, rules.default) for field in manifest.fields}
        self._keeps_all = all(keep == "store" for keep in self._keep.values())
        self._key = key
        self._shared = lru_cache(_KNOWN)(self._make_shared)
        self._labelled = lru_cache(_KNOWN, typed=True)(_label)  # 1 and True are equal, and not the same JSON

    def frames(
        self,
        answered: Iterable[tuple[str, Row, Outcome]],
        origin: Origin,
        latency_ms: float,
        at: str,
        *,
        cached: bool = False,
    ) -> list[bytes]:
        """The journal's line for each row of a request: its id, what came of it, for whom, and when."""
        keeps_all, classifies = self._keeps_all, self._classifies
        time, request, latency = at.encode(), to_json(origin.request_id), to_json(latency_ms)
        frames = []
        for identifier, row, outcome in answered:
            output = label = probabilities = _NULL
            error = None
            if isinstance(outcome, FieldError):
                error = outcome.code
            else:
                output, label = self._labelled(outcome.value) if classifies else (to_json(outcome.value), _NULL)
                if outcome.probabilities is not None:
                    probabilities = to_json(outcome.probabilities)
            principal, shared = self._shared(origin.principal, origin.protocol, cached, error)
            inputs = to_json(row if keeps_all else self._kept(row))
            own = (identifier.encode(), time, request, principal, shared, latency, inputs, output, label, probabilities)
            frames.append(frame(PAYLOAD % own))
        return frames

    def _make_shared(
        self,
        principal: str,
        protocol: str,
        cached: bool,  # noqa: FBT001 -- as the cache takes it
        error: str | None,
    ) -> tuple[bytes, bytes]:
        """The principal; and the members that are the same for most rows, without their braces."""
        values = (protocol, self._model, self._version, self._digest, cached, error)
        return to_json(principal), to_json(dict(zip(SHARED, values, strict=True)))[1:-1]

    def _kept(self, row: Row) -> Mapping[str, Any]:
        return {
            name: value if self._keep[name] == "store" else self._hashed(name, value)
            for name, value in row.items()
            if self._keep[name] != "drop"
        }

    def _hashed(self, name: str, value: Any) -> str:
        """Equal values of one field have equal hashes; without the key, nobody can try values out."""
        digest = hmac.new(self._key, to_json([name, value]), hashlib.sha256)
        return f"hmac-sha256:{digest.hexdigest()}"


def _label(value: Label | float) -> tuple[bytes, bytes]:
    """A label as the answer has it, and as the text that it is counted under."""
    output = to_json(value)
    return output, output if type(value) is str else to_json(str(value))


def timestamp() -> str:
    """Now, as records have it: ISO 8601 in UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def hash_key(settings: StorageSettings) -> bytes:
    """The key of hashed fields: the setting, or one of our own beside the journal, made on first need.

    Raises OSError when there is none and none can be written.
    """
    given = settings.log_hash_key.get_secret_value()
    if given:
        return given.encode()
    path = settings.journal_dir.parent / "log-hash.key"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        make_secret(path)
    return path.read_bytes()
