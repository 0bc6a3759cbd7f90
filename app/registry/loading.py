"""Loading: from a version on disk to an entry that is served or refused, with a trial before."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from app.errors import Refusal, VersionRefused
from app.registry.entries import VersionEntry
from app.registry.proving import Proving
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.registry.loader import LoadedModel

log = structlog.get_logger(__name__)

# Refusals that may pass: for want of memory, since the machine was busy, or for want of a key.
_PASSING = frozenset({"no_memory", "trial_timeout", "trial_memory", "trial_crashed", "unsigned", "unknown_key"})
_PASSING_SECONDS = 30.0


class Loading:
    """Used by one thread at a time, except for `close` and `release`."""

    def __init__(self, proving: Proving, metrics: Metrics) -> None:
        self._proving = proving
        self.source = proving.source
        self._metrics = metrics

    def load(self, name: str, entry: VersionEntry, make_room: "Callable[[int], bool]") -> VersionEntry:
        """The entry, `serving` or `refused`; `make_room` says whether there is room for so many bytes."""
        try:
            proven = self._proving.prove(name, entry.version)
            size = proven.verdict.memory_bytes
            if not make_room(size):
                return self._refused(name, entry, _no_memory(size))
            model = self._proving.load(proven, self._metrics)
        except VersionRefused as error:
            return self._refused(name, entry, error.refusal)
        except Exception as error:  # whatever one version does, the others are loaded
            log.exception("model_load_failed", model=name, version=entry.version)
            return self._refused(name, entry, Refusal("load_failed", type(error).__name__))
        self._note_serving(model)
        return replace(
            entry,
            state="serving",
            manifest=model.manifest,
            model=model,
            refusal=None,
            memory_bytes=size,
        )

    def known(self, name: str, version: int) -> VersionEntry:
        """A version that nobody has asked for: idle, or refused where not even its manifest can be read."""
        try:
            return VersionEntry(version, "idle", self.source.manifest(name, version))
        except VersionRefused as error:
            return self._refused(name, VersionEntry(version, "idle"), error.refusal)

    def renewed(self, model: "LoadedModel") -> "LoadedModel":
        """The model with the rules for log and cache as they are now; itself where they have not changed.

        Raises VersionRefused when they cannot be read.
        """
        from app.registry.loader import read_rules  # noqa: PLC0415 -- imported by now

        log_rules, cache_rules = read_rules(self.source, model.manifest)
        if (log_rules, cache_rules) == (model.log_rules, model.cache_rules):
            return model
        return replace(model, log_rules=log_rules, cache_rules=cache_rules)

    def release(self, model: "LoadedModel") -> None:
        """It is not served any more."""
        labels = (model.name, str(model.version))
        for gauge in (self._metrics.serving, self._metrics.load_seconds):
            gauge.remove(*labels)
        self._metrics.model_runtime.remove(*labels, model.runtime.name)
        log.info("model_released", model=model.name, version=model.version)

    def _note_serving(self, model: "LoadedModel") -> None:
        labels = (model.name, str(model.version))
        self._metrics.serving.labels(*labels).set(1)
        self._metrics.load_seconds.labels(*labels).set(model.load_seconds)
        self._metrics.model_runtime.labels(*labels, model.runtime.name).set(1)
        seconds, runtime = round(model.load_seconds, 2), model.runtime.name
        log.info("model_loaded", model=model.name, version=model.version, runtime=runtime, seconds=seconds)

    def _refused(self, name: str, entry: VersionEntry, refusal: Refusal) -> VersionEntry:
        # One that is thought over now and again is said once.
        say = log.debug if refusal == entry.refusal else log.error
        say("model_refused", model=name, version=entry.version, reason=refusal.reason, detail=refusal.detail)
        if entry.state != "idle":
            self._metrics.serving.labels(name, str(entry.version)).set(0)
        passes = refusal.reason in _PASSING
        retry_at = time.monotonic() + _PASSING_SECONDS if passes else float("inf")
        return replace(entry, state="refused", refusal=refusal, retry_at=retry_at)


def _no_memory(size: int) -> Refusal:
    told = f"{size / (1 << 20):,.0f} MiB"
    return Refusal("no_memory", f"it takes {told}, and MODELS_MAX_BYTES leaves no room for them")
