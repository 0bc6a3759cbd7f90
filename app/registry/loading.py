"""Loading: from a version on disk to an entry that is served or refused, with a trial before."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from app.config import ModelSettings
from app.errors import Refusal, VersionRefused
from app.manifest import Manifest
from app.registry.entries import VersionEntry
from app.registry.sources import DirectorySource
from app.registry.trials import Trials, Verdict
from app.registry.trust import Trust
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.registry.loader import LoadedModel
    from app.runtimes.compile import Compiling

log = structlog.get_logger(__name__)

# Refusals that may pass: for want of memory, or since the machine was busy.
_PASSING = frozenset({"no_memory", "trial_timeout", "trial_memory", "trial_crashed"})
_PASSING_SECONDS = 30.0


class Loading:
    """Used by one thread at a time, except for `close` and `release`."""

    def __init__(self, settings: ModelSettings, metrics: Metrics) -> None:
        self.source = DirectorySource(settings.models_dir)
        self._settings = settings
        self._trust = Trust(settings.model_modules)
        self._metrics = metrics
        self.trials = Trials(settings)

    def load(self, name: str, entry: VersionEntry, make_room: "Callable[[int], bool]") -> VersionEntry:
        """The entry, `serving` or `refused`; `make_room` says whether there is room for so many bytes."""
        try:
            manifest = self.source.manifest(name, entry.version)
            verdict = self._tried(manifest)
            if not make_room(verdict.memory_bytes):
                return self._refused(name, entry, _no_memory(verdict))
            model = self._load(manifest, verdict)
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
            memory_bytes=verdict.memory_bytes,
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

    def _tried(self, manifest: Manifest) -> Verdict:
        if self._settings.model_trials == "off":
            return Verdict(memory_bytes=manifest.artefact.size)
        verdict = self.trials.verdict(self.source, manifest)
        if verdict.refusal is not None:
            raise VersionRefused(verdict.refusal.reason, verdict.refusal.detail)
        return verdict

    def _load(self, manifest: Manifest, verdict: Verdict) -> "LoadedModel":
        # scikit-learn takes seconds to import; the service answers its health routes before that.
        from app.registry.loader import load_version  # noqa: PLC0415

        compiling = self._compiling(manifest, verdict) if self._settings.compile == "auto" else None
        return load_version(self.source, manifest.name, manifest.version, self._trust, compiling)

    def _compiling(self, manifest: Manifest, verdict: Verdict) -> "Compiling":
        from app.runtimes.compile import Compiling, Decision, Form  # noqa: PLC0415 -- as above
        from app.runtimes.cost import Cost  # noqa: PLC0415

        decision = None
        if verdict.plan:
            forms = tuple(Form(**form.model_dump()) for form in verdict.forms)
            decision = Decision(verdict.plan, forms, Cost(verdict.cost))
        fell_back = self._metrics.runtime_fallbacks.labels(manifest.name, str(manifest.version)).inc
        return Compiling(fell_back, decision=decision)

    def _note_serving(self, model: "LoadedModel") -> None:
        labels = (model.name, str(model.version))
        self._metrics.serving.labels(*labels).set(1)
        self._metrics.load_seconds.labels(*labels).set(model.load_seconds)
        self._metrics.model_runtime.labels(*labels, model.runtime.name).set(1)
        seconds, runtime = round(model.load_seconds, 2), model.runtime.name
        log.info("model_loaded", model=model.name, version=model.version, runtime=runtime, seconds=seconds)

    def _refused(self, name: str, entry: VersionEntry, refusal: Refusal) -> VersionEntry:
        log.error("model_refused", model=name, version=entry.version, reason=refusal.reason, detail=refusal.detail)
        if entry.state != "idle":
            self._metrics.serving.labels(name, str(entry.version)).set(0)
        passes = refusal.reason in _PASSING
        retry_at = time.monotonic() + _PASSING_SECONDS if passes else float("inf")
        return replace(entry, state="refused", refusal=refusal, retry_at=retry_at)


def _no_memory(verdict: Verdict) -> Refusal:
    size = f"{verdict.memory_bytes / (1 << 20):,.0f} MiB"
    return Refusal("no_memory", f"it takes {size}, and MODELS_MAX_BYTES leaves no room for them")
