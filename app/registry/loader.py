"""From a folder to a model that answers: verify, load, prove, compile, warm up.

The order matters: signature and digest before anything is loaded, the golden rows before anything is served.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from threading import Lock

import structlog

from app.errors import VersionRefused
from app.manifest import CacheRules, LogRules, Manifest
from app.pipelines import Pipeline, pipeline_for
from app.registry.artefact import read_estimator
from app.registry.golden import check_golden_rows
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from app.registry.verification import verified
from app.runtimes.base import Runtime
from app.runtimes.columns import forget_column_names
from app.runtimes.compile import Compiling, Decision, Form, Plan, compile_runtime
from app.runtimes.cost import UNKNOWN_COST, Cost, measure_cost
from app.runtimes.politeness import breathe
from app.runtimes.sklearn import SklearnRuntime
from app.runtimes.threads import bound_numeric_threads, neutralise_jobs

log = structlog.get_logger(__name__)

_WARM_ROWS = (1, 1, 16)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """One version in memory, verified and warm; never changed, so a request may hold it for as long as it takes.

    `reference` is scikit-learn with the estimator of record; `runtime` is what answers; `forms` is the report on every
    form that was tried to find it, empty where none was. Whoever calls the runtime holds `turn`.
    """

    manifest: Manifest
    pipeline: Pipeline
    reference: SklearnRuntime
    runtime: Runtime
    load_seconds: float
    cost: Cost = UNKNOWN_COST
    log_rules: LogRules = field(default_factory=LogRules)
    cache_rules: CacheRules = field(default_factory=CacheRules)
    forms: tuple[Form, ...] = ()
    plan: Plan = ()
    turn: Lock = field(default_factory=Lock, repr=False)

    @property
    def decision(self) -> Decision | None:
        """What another process need not find out again; None where nothing was decided."""
        return Decision(self.plan, self.forms, self.cost) if self.plan else None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """The number of this version."""
        return self.manifest.version


def load_version(
    source: DirectorySource,
    name: str,
    version: int,
    trust: Trust,
    compiling: Compiling | None = None,
) -> LoadedModel:
    """Load one version, or raise VersionRefused with the reason. Without `compiling`, scikit-learn answers."""
    started = time.perf_counter()
    bound_numeric_threads()
    found = verified(source, name, version, trust)
    manifest = found.manifest
    rules, cache_rules = read_rules(source, manifest)
    with _naming(found.differences):
        model = assemble(manifest, read_estimator(found.artefact, manifest.artefact.file, trust), started)
        breathe()
        check_golden_rows(manifest, model.pipeline, model.reference)
    breathe()
    if found.differences:
        log.warning("libraries_proven", model=name, version=version, differences=list(found.differences))
    if compiling is not None:
        model = _compiled(model, compiling)
    cost = _warm_up(model, compiling.decision if compiling is not None and model.plan else None)
    seconds = time.perf_counter() - started
    return replace(model, log_rules=rules, cache_rules=cache_rules, cost=cost, load_seconds=seconds)


def _compiled(model: LoadedModel, compiling: Compiling) -> LoadedModel:
    """The model with its fastest forms; whatever goes wrong there, scikit-learn answers as it did before."""
    try:
        compiled = compile_runtime(model.manifest, model.pipeline, model.reference, compiling)
        check_golden_rows(model.manifest, model.pipeline, compiled.runtime)
    except (Exception, SystemExit):  # an estimator may do anything, and the version is proven without other forms
        log.exception("compile_failed", model=model.name, version=model.version)
        return model
    return replace(model, runtime=compiled.runtime, forms=compiled.forms, plan=compiled.plan)


def assemble(manifest: Manifest, estimator: object, started: float) -> LoadedModel:
    """Put pipeline and runtime around an estimator, and check that it is what the manifest says."""
    if not hasattr(estimator, "predict"):
        raise VersionRefused("not_an_estimator", f"the artefact holds a {type(estimator).__name__}, without predict")
    neutralise_jobs(estimator)
    if manifest.artefact.container != "frame":
        forget_column_names(estimator)
    try:
        runtime = SklearnRuntime(estimator, manifest.task)
    except (AttributeError, ValueError):  # never fitted; or classes of several outputs
        raise VersionRefused(
            "outputs_mismatch", "the artefact is not a fitted classifier, as the manifest says"
        ) from None
    if len(runtime.classes) != len(manifest.outputs.labels):
        count, labels = len(runtime.classes), len(manifest.outputs.labels)
        raise VersionRefused("outputs_mismatch", f"the estimator has {count} classes, the manifest {labels} labels")
    if runtime.has_probabilities != manifest.outputs.probabilities:
        raise VersionRefused("outputs_mismatch", "estimator and manifest disagree on whether there are probabilities")
    return LoadedModel(manifest, pipeline_for(manifest), runtime, runtime, time.perf_counter() - started)


def read_rules(source: DirectorySource, manifest: Manifest) -> tuple[LogRules, CacheRules]:
    """The model's rules for the log and the cache.

    Raises VersionRefused, also for a field that there is not: it may be a typo that stores what should be dropped.
    """
    rules = source.log_rules(manifest.name)
    unknown = sorted(rules.fields.keys() - {field.name for field in manifest.fields})
    if unknown:
        raise VersionRefused("log_rules_invalid", f"log.json names {unknown}, which are no fields of this version")
    return rules, source.cache_rules(manifest.name)


@contextmanager
def _naming(differences: Sequence[str]) -> Iterator[None]:
    """Whatever goes wrong with a version of other libraries may be due to them, so a refusal names them."""
    try:
        yield
    except VersionRefused as error:
        refusal = error.refusal
        raise VersionRefused(refusal.reason, "; ".join([refusal.detail, *differences])) from error


def _warm_up(model: LoadedModel, decision: Decision | None) -> Cost:
    """Calls of growing size, so that the first caller does not pay for lazy imports, caches and page faults.

    Where the cost is known already, a few: callers may be served beside it, and measuring would count them.
    """
    golden = [row.inputs for row in model.manifest.golden.rows]

    def call(rows: int) -> None:
        sample = list(islice(cycle(golden), rows))
        model.pipeline.postprocess(model.runtime.predict(model.pipeline.preprocess(sample), rows))

    if decision is None:
        return measure_cost(call)
    for rows in _WARM_ROWS:
        call(rows)
    return decision.cost
