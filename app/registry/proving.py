"""Proving: the way by which a version gets into a process, be it to serve or to be examined.

Signature and manifest first, then a trial in a process of its own, and then what the trial has found out is followed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.config import ModelSettings
from app.errors import VersionRefused
from app.manifest import Manifest
from app.registry.sources import DirectorySource
from app.registry.trials import Trials, Verdict
from app.registry.trust import trust_of
from app.registry.verification import verified_manifest
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel
    from app.runtimes.compile import Decision


@dataclass(frozen=True, slots=True)
class Proven:
    """A version that came well through its trial."""

    manifest: Manifest
    verdict: Verdict


class Proving:
    """Everything blocks, and raises VersionRefused. `trials` are to be closed at the end."""

    def __init__(self, settings: ModelSettings, *, production: bool) -> None:
        """Raises InvalidSettings when signatures are required, and there is no key to check them with."""
        self.source = DirectorySource(settings.models_dir)
        self._trust = trust_of(settings, production=production)
        self._compile = settings.compile == "auto"
        self.tries = settings.model_trials == "auto"
        self.trials = Trials(settings, self._trust)

    def prove(self, name: str, version: int) -> Proven:
        """Nothing of the version is loaded here."""
        manifest, _ = verified_manifest(self.source, name, version, self._trust)
        if not self.tries:
            return Proven(manifest, Verdict(memory_bytes=manifest.artefact.size))
        verdict = self.trials.verdict(self.source, manifest)
        if verdict.refusal is not None:
            raise VersionRefused(verdict.refusal.reason, verdict.refusal.detail)
        return Proven(manifest, verdict)

    def load(self, proven: Proven, metrics: Metrics | None = None) -> "LoadedModel":
        """With `metrics`, calls in which a form raises and scikit-learn answers are counted."""
        # scikit-learn takes seconds to import; a service answers its health routes before that.
        from app.registry.loader import load_version  # noqa: PLC0415
        from app.runtimes.compile import Compiling  # noqa: PLC0415

        name, version = proven.manifest.name, proven.manifest.version
        compiling = None
        if self._compile:
            fell_back = metrics.runtime_fallbacks.labels(name, str(version)).inc if metrics else _nothing
            compiling = Compiling(fell_back, decision=_decision(proven.verdict))
        return load_version(self.source, name, version, self._trust, compiling)


def _nothing() -> None:
    """Nobody counts."""


def _decision(verdict: Verdict) -> "Decision | None":
    from app.runtimes.compile import Decision, Form  # noqa: PLC0415 -- as above
    from app.runtimes.cost import Cost  # noqa: PLC0415

    if not verdict.plan:
        return None
    return Decision(verdict.plan, tuple(Form(**form.model_dump()) for form in verdict.forms), Cost(verdict.cost))
