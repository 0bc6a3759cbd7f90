"""A record is what the database will hold of an answer, by the rules of its model."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from app.config import StorageSettings
from app.errors import FieldError
from app.manifest import LogRules
from app.pipelines.base import Prediction
from app.storage.lines import unframe
from app.storage.records import Origin, Recorder, hash_key, timestamp
from tests.support.manifests import GAP, NUMBER, make_manifest

ORIGIN = Origin("request-1", "anonymous", "v2")
ROW = {NUMBER.name: 5.1, "age": None}


def _record(rules: LogRules, outcome: Any = None, key: bytes = b"key") -> dict[str, Any]:
    recorder = Recorder(make_manifest(NUMBER, GAP), rules, key)
    outcome = outcome or Prediction("yes", {"no": 0.25, "yes": 0.75})
    payload = unframe(recorder.frames([("id-1", ROW, outcome)], ORIGIN, 1.5, timestamp())[0].rstrip(b"\n"))
    assert payload is not None
    found: dict[str, Any] = json.loads(payload)
    return found


def test_an_answer_is_recorded_with_all_that_explains_it() -> None:
    """Who asked what, and which artefact answered."""
    record = _record(LogRules())
    at = record.pop("at")
    assert at.endswith("+00:00")
    assert record == {
        "id": "id-1",
        "request_id": "request-1",
        "principal": "anonymous",
        "model": "toy",
        "version": 1,
        "digest": "0" * 64,
        "protocol": "v2",
        "inputs": ROW,
        "output": "yes",
        "label": "yes",
        "probabilities": {"no": 0.25, "yes": 0.75},
        "latency_ms": 1.5,
        "cached": False,
        "error": None,
    }


def test_a_failure_is_recorded_with_its_code_and_no_output() -> None:
    """So that failures can be studied, too."""
    record = _record(LogRules(), FieldError("model_failed", "the model failed on this row"))
    assert (record["output"], record["label"], record["probabilities"]) == (None, None, None)
    assert record["error"] == "model_failed"
    assert record["inputs"] == ROW


def test_fields_are_stored_hashed_or_dropped_as_the_rules_say() -> None:
    """A hash is keyed, and the same for the same value of the same field."""
    rules = LogRules(default="drop", fields={NUMBER.name: "hash"})
    record = _record(rules)
    assert list(record["inputs"]) == [NUMBER.name]
    hashed = record["inputs"][NUMBER.name]
    assert hashed.startswith("hmac-sha256:")
    assert _record(rules)["inputs"][NUMBER.name] == hashed
    assert _record(rules, key=b"another")["inputs"][NUMBER.name] != hashed
    assert "5.1" not in json.dumps(record["inputs"])


def test_rules_refuse_what_they_do_not_know() -> None:
    """A typo must not store what should be dropped."""
    for document in ('{"default": "forget"}', '{"field": {}}', '{"retention_days": -1}'):
        with pytest.raises(ValueError, match="validation error"):
            LogRules.model_validate_json(document)


def test_the_key_of_hashes_is_the_setting_or_made_once(tmp_path: Any) -> None:
    """Made readable by its owner alone, and found again."""
    given = StorageSettings(journal_dir=tmp_path / "journal", log_hash_key="given")
    assert hash_key(given) == b"given"
    settings = StorageSettings(journal_dir=tmp_path / "journal")
    key = hash_key(settings)
    assert len(key) == 64
    assert hash_key(settings) == key
    assert (tmp_path / "log-hash.key").stat().st_mode & 0o777 == 0o600


def test_whoever_needs_the_key_of_hashes_at_the_same_moment_has_the_same(tmp_path: Path) -> None:
    """Nobody reads it before it is whole."""
    for turn in range(50):
        settings = StorageSettings(journal_dir=tmp_path / f"{turn}/journal")
        together = Barrier(4)

        def ask(settings: StorageSettings = settings, together: Barrier = together) -> bytes:
            together.wait()
            return hash_key(settings)

        with ThreadPoolExecutor(4) as pool:
            keys = {asked.result() for asked in [pool.submit(ask) for _ in range(4)]}
        assert [len(key) for key in keys] == [64]
