"""Everything with a lifetime: opened once, in order, and closed in reverse, however we leave."""

import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from app.auth.authenticator import Authenticator
from app.auth.clients import Clients
from app.auth.directory import Directory
from app.auth.passwords import Passwords
from app.board import Board
from app.config import Settings
from app.inference.cache import PredictionCache
from app.inference.service import PredictionService
from app.limits.columns import Columns
from app.limits.limiter import RateLimits
from app.registry.registry import ModelRegistry
from app.registry.sources import DirectorySource
from app.release.changes import Releases
from app.release.settling import Settling
from app.storage.database import Database
from app.storage.prediction_log import PredictionLog
from app.telemetry.metrics import Metrics
from app.telemetry.shared import Snapshots


@dataclass(frozen=True, slots=True)
class Services:
    """What routes and commands work with."""

    settings: Settings
    metrics: Metrics
    database: Database
    log: PredictionLog
    registry: ModelRegistry
    cache: PredictionCache
    predictions: PredictionService
    directory: Directory
    authenticator: Authenticator
    clients: Clients
    passwords: Passwords
    limits: RateLimits
    releases: Releases
    board: Board | None = None
    snapshots: Snapshots | None = None


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a worker has from before it was forked, and its siblings too."""

    board: Board
    registry: ModelRegistry
    snapshots: Snapshots
    columns: Sequence[memoryview]


def _retention(settings: Settings) -> Callable[[str], int]:
    """For how many days each model's predictions are kept, by its rules as they are when it is asked."""
    source, default = DirectorySource(settings.models.models_dir), settings.storage.log_retention_days
    return lambda name: source.retention_days(name, default)


# How long another thread may keep the event loop's from going on; Python's own is ten times that.
_SWITCH_SECONDS = 0.0005


@asynccontextmanager
async def open_services(
    settings: Settings, metrics: Metrics, inheritance: Inheritance | None = None
) -> AsyncIterator[Services]:
    """The service without its web application; with an `inheritance` it is one of several that are one."""
    board = inheritance.board if inheritance else None
    processes = board.workers if board else 1
    sys.setswitchinterval(_SWITCH_SECONDS)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        if inheritance is not None:  # first, and so the last to be closed: the end is counted, too
            await enter(inheritance.snapshots)
        database = stack.enter_context(Database(settings.storage))
        prediction_log = PredictionLog(settings.storage, database, metrics, _retention(settings), processes=processes)
        log = await enter(prediction_log)
        # Before a thread loads models: both silence warnings for a moment, which Python does for all threads at once.
        columns = Columns(inheritance.columns, inheritance.board.own_slot) if inheritance else None
        limits = await enter(RateLimits(settings.limits, settings.storage, metrics, columns=columns))
        production = settings.place.production
        registry = inheritance.registry if inheritance else None
        registry = registry or ModelRegistry(settings.models, metrics, production=production)
        if board is not None:
            registry.join(board)
        await enter(registry)
        cache = await enter(PredictionCache(settings.cache, settings.storage, metrics))
        predictions = await enter(PredictionService(registry, cache, log, settings.storage, metrics))
        directory = await enter(Directory(database))
        releases = Releases(settings.models, database, registry, production=production)
        await enter(Settling(releases))
        yield Services(
            settings,
            metrics,
            database,
            log,
            registry,
            cache,
            predictions,
            directory,
            authenticator=await enter(Authenticator(settings.auth, directory, production=production)),
            clients=Clients(database),
            passwords=stack.enter_context(Passwords()),
            limits=limits,
            releases=releases,
            board=board,
            snapshots=inheritance.snapshots if inheritance else None,
        )
