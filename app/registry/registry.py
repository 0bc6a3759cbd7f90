"""ModelRegistry: what is on disk, what of it is served, and what a caller's words mean.

Loading runs on a thread of its own from start-up on: the service answers its health routes meanwhile, and serves each
model as soon as it is verified. Where several processes are to share the models, they are loaded before the fork. What
it knows is one immutable dict, replaced as a whole.
"""

import asyncio
import contextlib
import ctypes
import gc
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Self

import structlog

from app.config import ModelSettings
from app.errors import ModelNotFound, ModelNotServing, NotReady, Refusal, VersionNotFound, VersionRefused
from app.manifest import Manifest, TrafficRules
from app.registry.aliases import CHAMPION, Aliases
from app.registry.sources import DirectorySource
from app.registry.trust import trust_of
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

log = structlog.get_logger(__name__)

State = Literal["loading", "serving", "refused", "idle"]
PINNED = re.compile(r"v[0-9]+")
_STOP_SECONDS = 5.0
_YOUNG_OBJECTS = 50_000
RETRY_WHILE_LOADING = 1
RETRY_WHILE_REFUSED = 30


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """One version on disk: `serving` with its model, `refused` with the reason, or `idle` since no alias names it."""

    version: int
    state: State
    manifest: Manifest | None = None
    model: "LoadedModel | None" = None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model: its versions in ascending order, and what its aliases point to."""

    name: str
    versions: Mapping[int, VersionEntry]
    aliases: Aliases
    refusal: Refusal | None = None
    traffic: TrafficRules = field(default_factory=TrafficRules)

    @property
    def state(self) -> State:
        """That of the whole model: what its champion is, or else the best of what its aliases name."""
        states = {self.versions[v].state for v in self.aliases.values() if v in self.versions}
        champion = self.versions.get(self.aliases.get(CHAMPION, 0))
        if champion is not None:
            return champion.state
        return next((s for s in ("loading", "serving", "refused") if s in states), "refused")

    @property
    def ready(self) -> bool:
        """Whether what callers rely on is served: the champion, and what the pinned API versions (`v1`, …) name."""
        relied_on = [v for alias, v in self.aliases.items() if alias == CHAMPION or PINNED.fullmatch(alias)]
        served = all(v in self.versions and self.versions[v].state == "serving" for v in relied_on)
        return CHAMPION in self.aliases and served

    def known(self) -> str:
        """The versions and aliases that a caller may ask for, as a phrase."""
        numbers = ", ".join(str(v) for v, entry in self.versions.items() if entry.state != "idle") or "none"
        return f"versions: {numbers}; aliases: {', '.join(sorted(self.aliases)) or 'none'}"


class ModelRegistry:
    """Open it as an async context manager: entering starts the loading, leaving waits for what is being loaded."""

    def __init__(self, settings: ModelSettings, metrics: Metrics, *, production: bool = False) -> None:
        """Raises InvalidSettings when signatures are required, and there is no key to check them with."""
        self.source = DirectorySource(settings.models_dir)
        self.required = settings.required
        self._trust = trust_of(settings, production=production)
        self._compile = settings.compile == "auto"
        self._metrics = metrics
        self._models: Mapping[str, ModelEntry] = MappingProxyType({})
        self._loading: asyncio.Future[None] | None = None
        self._loaded = False
        self._stopping = False
        self.generation = 0

    def load(self) -> None:
        """Here and now, before it is opened; processes that are forked afterwards share the models."""
        self._models = self._scan()
        self._load_all()
        self._loaded = True

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._loading = loop.create_future()
        if self._loaded:
            self._loading.set_result(None)
            return self
        self._models = await asyncio.to_thread(self._scan)
        # A daemon, and none of the loop's own threads: a model that hangs while it is loaded must not keep us here.
        threading.Thread(target=self._load_and_say, args=(loop, self._loading), name="load-models", daemon=True).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        if self._loading is not None:
            await asyncio.wait([self._loading], timeout=_STOP_SECONDS)

    async def refreshed(self) -> None:
        """Return once what is on disk now has been taken here, or refused."""

    async def loaded(self) -> None:
        """Return once every version that an alias names is served or refused."""
        if self._loading is not None:
            await asyncio.shield(self._loading)

    @property
    def models(self) -> Mapping[str, ModelEntry]:
        """Everything that is known now, by name."""
        return self._models

    @property
    def ready(self) -> bool:
        """Whether every required model serves what callers rely on."""
        return all((entry := self._models.get(name)) is not None and entry.ready for name in self.required)

    @property
    def settled(self) -> bool:
        """Whether nothing is being loaded any more."""
        return self._loading is not None and self._loading.done()

    def model(self, name: str) -> ModelEntry:
        """Raises ModelNotFound, naming the models that there are."""
        entry = self._models.get(name)
        if entry is None:
            names = ", ".join(self._models) or "none"
            raise ModelNotFound(f"there is no model of that name; models: {names}", models=list(self._models))
        return entry

    def resolve(self, name: str, wanted: str) -> "LoadedModel":
        """The model that answers for `wanted`, the number of a version or an alias.

        Raises ModelNotFound; VersionNotFound, naming those that exist; NotReady while it is being loaded;
        ModelNotServing when it was refused.
        """
        entry = self.model(name)
        number = entry.aliases.get(wanted) if not _is_number(wanted) else int(wanted)
        version = entry.versions.get(number) if number is not None else None
        if version is not None and version.model is not None:
            return version.model
        if version is not None and version.state == "loading":
            raise NotReady(f"{name} is being loaded", retry_after=RETRY_WHILE_LOADING)
        if entry.refusal is not None and (wanted in entry.aliases or not entry.aliases):
            raise ModelNotServing(f"{name} is not served: {_reason(entry.refusal)}", retry_after=RETRY_WHILE_REFUSED)
        if version is not None and version.state == "refused":
            detail = f"{name} {version.version} is not served: {_reason(version.refusal)}"
            raise ModelNotServing(detail, retry_after=RETRY_WHILE_REFUSED)
        raise VersionNotFound(
            f"{name} does not serve that version; {entry.known()}",
            versions=[v for v, e in entry.versions.items() if e.state != "idle"],
            aliases=dict(sorted(entry.aliases.items())),
        )

    def _scan(self) -> Mapping[str, ModelEntry]:
        """What is on disk, before anything is loaded."""
        return MappingProxyType({name: self._scan_model(name) for name in self.source.names()})

    def _scan_model(self, name: str) -> ModelEntry:
        aliases: Aliases = {}
        refusal = None
        try:
            aliases = self.source.aliases(name)
        except VersionRefused as error:
            refusal = error.refusal
            log.error("aliases_refused", model=name, reason=refusal.reason, detail=refusal.detail)
        named = set(aliases.values())
        versions = {v: VersionEntry(v, "loading" if v in named else "idle") for v in self.source.versions(name)}
        for alias, missing in aliases.items():
            if missing not in versions:
                refusal = Refusal("alias_dangles", f"the alias {alias} names version {missing}, which does not exist")
                log.error("aliases_refused", model=name, reason=refusal.reason, detail=refusal.detail)
        try:
            traffic = self.source.traffic_rules(name)
        except VersionRefused as error:
            traffic, refusal = TrafficRules(), error.refusal
            log.error("traffic_rules_refused", model=name, reason=refusal.reason, detail=refusal.detail)
        return ModelEntry(name, versions, aliases, refusal, traffic)

    def _load_and_say(self, loop: asyncio.AbstractEventLoop, done: asyncio.Future[None]) -> None:
        try:
            self._load_all()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(_resolve, done)

    def _load_all(self) -> None:
        """Load what aliases name, required models first; runs on a thread."""
        started = time.perf_counter()
        order = sorted(self._models, key=lambda name: name not in self.required)
        for name in order:
            for entry in self._models[name].versions.values():
                if self._stopping:
                    return
                self._replace(name, self._load(name, entry))
        _settle_memory()
        states = [v.state for m in self._models.values() for v in m.versions.values()]
        log.info(
            "models_loaded",
            serving=states.count("serving"),
            refused=states.count("refused"),
            seconds=round(time.perf_counter() - started, 2),
        )

    def _load(self, name: str, entry: VersionEntry) -> VersionEntry:
        # scikit-learn takes seconds to import; the service answers its health routes before that.
        from app.registry.loader import load_version  # noqa: PLC0415
        from app.runtimes.compile import Compiling  # noqa: PLC0415

        labels = (name, str(entry.version))
        try:
            if entry.state == "idle":
                return replace(entry, manifest=self.source.manifest(name, entry.version))
            compiling = Compiling(self._metrics.runtime_fallbacks.labels(*labels).inc) if self._compile else None
            model = load_version(self.source, name, entry.version, self._trust, compiling)
        except VersionRefused as error:
            return self._refuse(name, entry, error.refusal)
        except Exception as error:  # whatever one version does, the others are loaded
            log.exception("model_load_failed", model=name, version=entry.version)
            return self._refuse(name, entry, Refusal("load_failed", type(error).__name__))
        self._metrics.serving.labels(*labels).set(1)
        self._metrics.load_seconds.labels(*labels).set(model.load_seconds)
        self._metrics.model_runtime.labels(*labels, model.runtime.name).set(1)
        seconds, runtime = round(model.load_seconds, 2), model.runtime.name
        log.info("model_loaded", model=name, version=entry.version, runtime=runtime, seconds=seconds)
        return replace(entry, state="serving", manifest=model.manifest, model=model)

    def _refuse(self, name: str, entry: VersionEntry, refusal: Refusal) -> VersionEntry:
        log.error("model_refused", model=name, version=entry.version, reason=refusal.reason, detail=refusal.detail)
        if entry.state != "idle":
            self._metrics.serving.labels(name, str(entry.version)).set(0)
        return replace(entry, state="refused", refusal=refusal)

    def _replace(self, name: str, version: VersionEntry) -> None:
        entry = self._models[name]
        changed = replace(entry, versions={**entry.versions, version.version: version})
        self._models = MappingProxyType({**self._models, name: changed})
        self.generation += 1
        self._metrics.ready.set(self.ready)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _settle_memory() -> None:
    """Take what is loaded, and will stay, out of the garbage collector's sight.

    A body of JSON can be a million small objects; measured, the collector walking over models and libraries again and
    again while they are made turned 0.08 s of parsing into 0.3 s. And give back what loading alone has needed: of a
    process that had loaded a forest of 190 MiB, a fifth.
    """
    gc.collect()
    with contextlib.suppress(AttributeError):  # another C library, which may do so by itself
        ctypes.CDLL(None).malloc_trim(0)
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 100)


def _is_number(wanted: str) -> bool:
    return wanted.isascii() and wanted.isdigit() and len(wanted) <= 10  # noqa: PLR2004 -- as many as Version has


def _reason(refusal: Refusal | None) -> str:
    return refusal.reason if refusal is not None else "unknown"
