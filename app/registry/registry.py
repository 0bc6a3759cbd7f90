"""ModelRegistry: what is on disk, what of it is served, and what a caller's words mean.

What it knows is one immutable dict, replaced as a whole, so a request sees one state of it. Two threads change it. One
looks at the disk and moves aliases between versions that are loaded, which takes no time. The other loads versions, one
after the other, beside what is served. A version that cannot be loaded changes nothing for callers: its aliases stay
where they are, and the reason is on show.

Where several processes are to share the models, they are loaded before the fork.
"""

import asyncio
import contextlib
import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import structlog

from app.board import Board
from app.config import ModelSettings
from app.errors import (
    ModelNotFound,
    ModelNotServing,
    NotReady,
    Refusal,
    VersionBeingLoaded,
    VersionNotFound,
    VersionRefused,
)
from app.registry.entries import ModelEntry, VersionEntry
from app.registry.loading import Loading
from app.registry.memory import give_back_memory, settle_memory
from app.registry.proving import Proving
from app.registry.reconcile import Wanted, merge_versions, read_wanted, reconcile
from app.registry.reloader import Reloader
from app.registry.watch import Watch, stamps
from app.runtimes.politeness import politely
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

log = structlog.get_logger(__name__)

_STOP_SECONDS = 5.0
# A version that callers have asked for by its number, and no longer do.
_COLD_SECONDS = 600.0
# Giving memory back holds everybody up for a moment: not while versions come one soon after another.
_TIDY_SECONDS = 5.0
# The process that tries versions is kept so long for the next one.
_REST_SECONDS = 5.0
# How long what has changed may take to be taken, here and by the other workers, while somebody waits for that.
_CONVERGE_SECONDS = 2.0
_GLANCE_SECONDS = 0.02
RETRY_WHILE_LOADING = 1
RETRY_WHILE_REFUSED = 30

Place = tuple[str, int]


class ModelRegistry:
    """Open it as an async context manager: entering starts the loading, leaving waits for what is being loaded."""

    def __init__(self, settings: ModelSettings, metrics: Metrics, *, production: bool = False) -> None:
        """Raises InvalidSettings when signatures are required, and there is no key to check them with."""
        self.required = settings.required
        self.generation = 0
        self.on_change: list[Callable[[], None]] = []
        self._proving = Proving(settings, production=production)
        self._loading = Loading(self._proving, metrics)
        self.source = self._proving.source
        self._most_bytes = settings.max_bytes
        self._metrics = metrics
        self._models: Mapping[str, ModelEntry] = MappingProxyType({})
        self._wanted: dict[str, Wanted] = {}
        self._watch = Watch(self.source.root, self._unsettled)
        self._changing = threading.RLock()
        self._queue: deque[Place] = deque()
        self._used: dict[Place, float] = {}
        self._began = time.perf_counter()
        self._busy = self._looked = self._settled = self._has_callers = False
        self._released_at = self._worked_at = 0.0
        self._unreadable = ""
        self._shared: set[Place] = set()
        self._board: Board | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._moved = asyncio.Event()
        self._coming: dict[Place, asyncio.Future[None]] = {}
        self._reloader = Reloader(self._look, self._work)

    def load(self) -> None:
        """Here and now, before it is opened; processes that are forked afterwards share the models."""
        self._look()
        while self._work():
            pass
        self._proving.trials.rest()
        self._shared = {(name, n) for name, m in self._models.items() for n, v in m.versions.items() if v.model}

    def join(self, board: Board) -> None:
        """This process is a worker, and tells the others what it serves."""
        self._board = board

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        if not self._looked:
            await asyncio.to_thread(self._look)
        self._reloader.start()
        if self._settled:
            await self._catch_up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._proving.trials.close)
        await self._reloader.stop(_STOP_SECONDS)
        self._loop = None

    async def _catch_up(self) -> None:
        """A worker that comes later than others begins with what they have; and shows that it lives meanwhile."""
        self._has_callers = False
        refreshed = asyncio.ensure_future(self._taken())
        while not refreshed.done():
            if self._board is not None:
                self._board.beat()
            await asyncio.wait([refreshed], timeout=1.0)
        await refreshed
        self._has_callers = True

    async def refreshed(self) -> None:
        """Return once what is on disk has been looked at, and taken here and by the other workers, if that is soon."""
        until = time.monotonic() + _CONVERGE_SECONDS
        await self._reloader.looked()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + _CONVERGE_SECONDS):
                await self.loaded()
        while self._board is not None and self._board.models_skew and time.monotonic() < until:  # noqa: ASYNC110 -- other processes set no event
            await asyncio.sleep(_GLANCE_SECONDS)

    async def _taken(self) -> None:
        await self._reloader.looked()
        await self.loaded()

    async def loaded(self) -> None:
        """Return once every version that an alias names is served or refused."""
        while not self.settled:
            self._moved.clear()
            await self._moved.wait()

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
        """Whether nothing is being loaded."""
        return self._settled and not self._queue and not self._busy

    def serves(self, model: "LoadedModel") -> bool:
        """Whether that very model answers."""
        version = self._version(model.name, model.version)
        return version is not None and version.model is model

    def model(self, name: str) -> ModelEntry:
        """Raises ModelNotFound, naming the models that there are."""
        entry = self._models.get(name)
        if entry is None:
            names = ", ".join(self._models) or "none"
            raise ModelNotFound(f"there is no model of that name; models: {names}", models=list(self._models))
        return entry

    def resolve(self, name: str, wanted: str) -> "LoadedModel":
        """The model that answers for `wanted`, the number of a version or an alias.

        Raises ModelNotFound; VersionNotFound, naming those that exist; NotReady while it is being loaded, and
        VersionBeingLoaded where that was begun for this caller's sake; ModelNotServing when it was refused.
        """
        entry = self.model(name)
        number = entry.aliases.get(wanted) if not _is_number(wanted) else int(wanted)
        version = entry.versions.get(number) if number is not None else None
        if version is not None and version.model is not None:
            if version.on_demand:
                self._used[name, version.version] = time.monotonic()
            return version.model
        if version is not None and self._may_be_loaded(version):
            version = self._demand(name, version.version)
        if version is not None and version.state == "loading":
            if version.on_demand:
                raise VersionBeingLoaded(name, version.version, retry_after=RETRY_WHILE_LOADING)
            raise NotReady(f"{name} is being loaded", retry_after=RETRY_WHILE_LOADING)
        if entry.refusal is not None and (wanted in entry.aliases or not entry.aliases):
            raise ModelNotServing(f"{name} is not served: {_reason(entry.refusal)}", retry_after=RETRY_WHILE_REFUSED)
        if version is not None and version.state == "refused":
            detail = f"{name} {version.version} is not served: {_reason(version.refusal)}"
            raise ModelNotServing(detail, retry_after=RETRY_WHILE_REFUSED)
        raise VersionNotFound(
            f"{name} does not serve that version; {entry.known()}",
            versions=list(entry.versions),
            aliases=dict(sorted(entry.aliases.items())),
        )

    def coming(self, name: str, version: int) -> "asyncio.Future[None]":
        """Done once that version is not being loaded any more; never cancel it, others wait for it, too."""
        assert self._loop is not None  # noqa: S101 -- whoever asks is on it
        future = self._coming.get((name, version))
        if future is None:
            future = self._coming[name, version] = self._loop.create_future()
            self._tell_those_who_wait()
        return future

    # On demand.

    def _may_be_loaded(self, version: VersionEntry) -> bool:
        if self._loop is None:
            return False
        return version.state == "idle" or (version.state == "refused" and time.monotonic() > version.retry_at)

    def _demand(self, name: str, number: int) -> VersionEntry:
        with self._changing:
            entry = self._models[name]
            version = entry.versions[number]
            if version.state != "loading":
                version = replace(version, state="loading", on_demand=True)
                self._publish(_with(entry, version))
                self._enqueue(name, number)
            return version

    def _make_room(self, size: int) -> bool:
        """Whether there is memory for so many bytes; versions that no alias names go, those first that rest longest."""
        with self._changing:
            while self._bytes() + size > self._budget:
                coldest = min(self._on_demand(), key=lambda place: self._used.get(place, 0.0), default=None)
                if coldest is None:
                    return False
                self._let_go(coldest)
            return True

    def _release_cold(self) -> None:
        with self._changing:
            for place in self._on_demand():
                if time.monotonic() - self._used.setdefault(place, time.monotonic()) > _COLD_SECONDS:
                    self._let_go(place)

    def _on_demand(self) -> list[Place]:
        return [(m.name, n) for m in self._models.values() for n, v in m.versions.items() if v.model and v.on_demand]

    def _let_go(self, place: Place) -> None:
        entry = self._models[place[0]]
        self._used.pop(place, None)
        self._settle(_with(entry, replace(entry.versions[place[1]], on_demand=False)))

    @property
    def _budget(self) -> int:
        """Of this process; what was loaded before the fork is there once for all of them."""
        shared = self._bytes(shared=True)
        processes = self._board.workers if self._board is not None else 1
        return shared + (self._most_bytes - shared) // processes

    def _bytes(self, *, shared: bool | None = None) -> int:
        """Memory of what is loaded, by trials: of all, or only of what is shared with other processes, or is not."""
        return sum(
            v.memory_bytes
            for m in self._models.values()
            for n, v in m.versions.items()
            if v.model is not None and (shared is None or shared == ((m.name, n) in self._shared))
        )

    # On the thread that looks.

    def _look(self) -> None:
        """Take what has changed on disk, as far as it takes no loading."""
        for name in sorted(self._changed(), key=lambda name: name not in self.required):
            self._take(name)
        self._looked = True
        self._try_again()
        self._release_cold()
        self._tidy()
        self._reloader.work()

    def _changed(self) -> list[str]:
        try:
            changed = self._watch.changed()
        except OSError as error:
            # What was served goes on being served: a disk that is away for a moment must not end the service.
            if self._unreadable != str(error):
                self._unreadable = str(error)
                log.error("models_unreadable", folder=str(self.source.root), reason=error.strerror)
            return []
        self._unreadable = ""
        return changed

    def _take(self, name: str) -> None:
        numbers = self.source.versions(name)
        known = self._models.get(name)
        if not numbers:
            self._note_gone(name)
            return
        new = [n for n in numbers if known is None or n not in known.versions]
        entries = {n: self._loading.known(name, n) for n in new}
        wanted = read_wanted(self.source, name)
        with self._changing:
            entry = self._models.get(name) or ModelEntry(name, {}, {})
            again = {n: v for n, v in entry.versions.items() if n in numbers}
            on_disk = {n: self._reconsidered(name, v) for n, v in {**entries, **again}.items()}
            entry = merge_versions(replace(entry, versions={**entry.versions, **on_disk}), on_disk)
            renewed = [n for n, v in again.items() if v.model is not on_disk[n].model]
            self._wanted[name] = wanted
            self._settle(entry)
        if renewed:
            log.info("rules_changed", model=name, versions=renewed)

    def _note_gone(self, name: str) -> None:
        with self._changing:
            entry = self._models.get(name)
            if entry is None:
                return
            if any(version.model is not None for version in entry.versions.values()):
                log.warning("model_vanished", model=name, meaning="what is loaded goes on being served")
                return
            self._models = MappingProxyType({n: m for n, m in self._models.items() if n != name})
            self._wanted.pop(name, None)
            self._note_change()

    def _reconsidered(self, name: str, version: VersionEntry) -> VersionEntry:
        """One that was refused is thought over when its files have changed; what is served goes by the rules of now."""
        if version.model is not None:
            try:
                return replace(version, model=self._loading.renewed(version.model))
            except VersionRefused as error:
                log.error("rules_refused", model=name, reason=error.refusal.reason, detail=error.refusal.detail)
                return version
        if version.refusal is not None and "_rules_" in version.refusal.reason:
            return self._loading.known(name, version.version)
        if version.state != "refused" or stamps(self.source.folder(name, version.version)) == version.stamps:
            return version
        return replace(self._loading.known(name, version.version), stamps=())

    def _try_again(self) -> None:
        """What was refused for a reason that may have passed, and is wanted."""
        now = time.monotonic()
        with self._changing:
            for entry in list(self._models.values()):
                due = {n: v for n, v in entry.versions.items() if v.state == "refused" and now > v.retry_at}
                if due.keys() & {*entry.aliases.values(), *entry.pending.values()}:
                    idle = {n: replace(v, state="idle") for n, v in due.items()}
                    self._settle(replace(entry, versions={**entry.versions, **idle}))

    def _tidy(self) -> None:
        """Give back the memory of what was let go, once those who were still being answered are."""
        now = time.monotonic()
        if self._released_at and now - self._released_at > _TIDY_SECONDS:
            self._released_at = 0.0
            give_back_memory()
        if self._worked_at and not self._busy and now - self._worked_at > _REST_SECONDS:
            self._worked_at = 0.0
            self._proving.trials.rest()

    def _unsettled(self, name: str) -> list[int]:
        entry = self._models.get(name)
        return [n for n, v in entry.versions.items() if v.state == "refused"] if entry is not None else []

    # On the thread that loads.

    def _work(self) -> bool:
        """Load the next version; False when there is none."""
        with self._changing:
            if not self._queue:
                if self._looked and not self._settled:
                    self._settle_first()
                return False
            self._busy = True
            name, number = self._queue.popleft()
            version = self._version(name, number) or VersionEntry(number, "loading")
        before = stamps(self.source.folder(name, number))
        with politely() if self._has_callers else contextlib.nullcontext():
            loaded = replace(self._loading.load(name, version, self._make_room), stamps=before)
        with self._changing:
            self._worked_at = self._used[name, number] = time.monotonic()
            now = self._version(name, number)
            if now is not None:
                # Whether it is still on demand is what the entry says by now.
                self._settle(_with(self._models[name], replace(loaded, on_demand=now.on_demand)))
            self._busy = False
            self._wake_loop()
        return True

    def _version(self, name: str, number: int) -> VersionEntry | None:
        entry = self._models.get(name)
        return entry.versions.get(number) if entry is not None else None

    def _settle_first(self) -> None:
        settle_memory()
        self._settled = self._has_callers = True
        states = [v.state for m in self._models.values() for v in m.versions.values()]
        log.info(
            "models_loaded",
            serving=states.count("serving"),
            refused=states.count("refused"),
            seconds=round(time.perf_counter() - self._began, 2),
        )
        self._note_change()

    # Under the lock.

    def _settle(self, entry: ModelEntry) -> None:
        step = reconcile(entry, self._wanted[entry.name])
        before = self._models.get(entry.name)
        self._publish(step.entry)
        for number in step.load:
            self._enqueue(entry.name, number)
        for model in step.released:
            self._released_at = time.monotonic()
            self._shared.discard((model.name, model.version))
            self._used.pop((model.name, model.version), None)
            self._loading.release(model)
        if before is not None and before.aliases != step.entry.aliases:
            log.info("aliases_moved", model=entry.name, before=before.aliases, after=step.entry.aliases)

    def _enqueue(self, name: str, number: int) -> None:
        self._queue.append((name, number))
        self._reloader.work()

    def _publish(self, entry: ModelEntry) -> None:
        self._models = MappingProxyType({**self._models, entry.name: entry})
        self._note_change()

    def _note_change(self) -> None:
        self.generation += 1
        self._metrics.ready.set(self.ready)
        if self._board is not None:
            self._board.note_models(self._digest(), self._bytes(shared=False))
        self._wake_loop()

    def _wake_loop(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(self._tell)

    def _digest(self) -> int:
        """The same number in two processes that serve the same."""
        served = sorted(
            (m.name, alias, n) for m in self._models.values() for alias, n in m.aliases.items() if m.serves(n)
        )
        return int.from_bytes(hashlib.blake2b(repr(served).encode(), digest_size=8).digest()) or 1

    # On the event loop.

    def _tell(self) -> None:
        self._moved.set()
        self._tell_those_who_wait()
        for listener in self.on_change:
            listener()

    def _tell_those_who_wait(self) -> None:
        for (name, number), future in list(self._coming.items()):
            version = self._version(name, number)
            if version is None or version.state != "loading":
                del self._coming[name, number]
                if not future.done():
                    future.set_result(None)


def _with(entry: ModelEntry, version: VersionEntry) -> ModelEntry:
    return replace(entry, versions={**entry.versions, version.version: version})


def _is_number(wanted: str) -> bool:
    return wanted.isascii() and wanted.isdigit() and len(wanted) <= 10  # noqa: PLR2004 -- as many as Version has


def _reason(refusal: Refusal | None) -> str:
    return refusal.reason if refusal is not None else "unknown"
