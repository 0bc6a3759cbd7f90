"""`serve`: the service, in this process or in several, with a progress line for each step."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import click
import structlog

from app.board import Board
from app.cli.welcome import Progress, announce
from app.config import Settings, StorageSettings, read_settings
from app.errors import OperatorError
from app.limits.columns import REGION_BYTES
from app.machine import start_numeric_threads
from app.telemetry.bulletins import Bulletins
from app.workers.crew import Bounds, Crew
from app.workers.processes import fork
from app.workers.supervisor import Sharing, Supervisor

if TYPE_CHECKING:
    from app.factory import Service

log = structlog.get_logger(__name__)

_BACKLOG = 2048
# A worker bounds its end itself, to its lame duck and this; what takes longer hangs.
_LEAVE_SECONDS = 40.0
# How long the start waits for a migration; predictions do not need the database.
_MIGRATE_SECONDS = 15
_LOOK_SECONDS = 0.05
_TAKES_LONGER = "it takes longer, and goes on beside the service"


class PortTaken(OperatorError):
    """Somebody else listens where the service should."""


@click.command()
@click.option("--train-if-empty", is_flag=True, help="Make the demo models first when the models folder has none.")
@click.option("--migrate", is_flag=True, help="Migrate the database first; one that is away does not stop the start.")
def serve(*, train_if_empty: bool, migrate: bool) -> None:
    """Serve the models in MODELS_DIR on HOST and PORT until stopped."""
    _end_well_when_asked()
    start_numeric_threads(1)  # else one for each core of the machine, in each process, and none of them is ever used
    settings = read_settings()
    with _listen(settings) as listener:
        start = _Start(settings, listener, Progress(json=settings.json_logs), train_if_empty, migrate)
        processes = settings.server.processes
        sys.exit(start.with_workers(processes) if processes > 1 else start.alone())


class _Shared:
    """Memory that all processes of the service have in common, through all generations."""

    def __init__(self, workers: int) -> None:
        self.board = Board(workers)
        self.bulletins = Bulletins(self.board.slots)
        self.columns = self.board.regions(self.board.slots, REGION_BYTES)


@dataclass(frozen=True, slots=True)
class _Start:
    """What both ways of serving need."""

    settings: Settings
    listener: socket.socket
    progress: Progress
    train_if_empty: bool
    migrate: bool

    def alone(self) -> int:
        """Everything in this process."""
        self._prepare()
        if self._wants_migration():
            _migrate_on_a_thread(self.settings.storage)
        from app.factory import create_app  # noqa: PLC0415 -- imported by now

        return self._run(create_app(self.settings))

    def with_workers(self, count: int) -> int:
        """This process only supervises, and imports nothing more than that needs."""
        from app.telemetry.logs import configure_logs  # noqa: PLC0415

        configure_logs(level=self.settings.server.log_level, json=self.settings.json_logs)
        shared = _Shared(count)
        board = shared.board
        server = self.settings.server
        leave_seconds = server.lame_duck_seconds + _LEAVE_SECONDS
        bounds = Bounds(server.worker_timeout_seconds, leave_seconds, server.worker_max_bytes)

        def generation(number: int) -> int:
            try:
                app = self._load(shared, number)
            except OperatorError as error:
                click.echo(f"presage: {error}", err=True)
                return 1
            return Crew(board, number, bounds, partial(self._work, app, board), self.listener.close).run()

        models = self.settings.models
        sharing = Sharing(models.share_models_above_bytes, models.share_models_after_seconds)
        return Supervisor(board, generation, leave_seconds + 5, sharing, self.listener.close).run()

    def _load(self, shared: "_Shared", number: int) -> "Service":
        """Everything that workers can share; no thread may be left when this returns, since none survives a fork."""
        if number == 0:
            self._prepare()
            if self._wants_migration():
                _migrate_in_a_process(self.settings.storage)
        else:
            self._check()
        from app.factory import create_app  # noqa: PLC0415 -- imported by now
        from app.registry.registry import ModelRegistry  # noqa: PLC0415
        from app.telemetry.metrics import Metrics  # noqa: PLC0415
        from app.telemetry.shared import Snapshots  # noqa: PLC0415
        from app.wiring import Inheritance  # noqa: PLC0415

        snapshots = Snapshots(shared.bulletins, shared.board, Metrics())
        registry = ModelRegistry(self.settings.models, snapshots.metrics, production=self.settings.place.production)
        self.progress.step(f"loading models from {self.settings.models.models_dir}/")
        registry.load()
        app = create_app(self.settings, Inheritance(shared.board, registry, snapshots, shared.columns))
        gc.collect()
        gc.freeze()  # else a worker's first collection would touch, and so copy, every object that is shared
        return app

    def _work(self, app: "Service", board: Board, slot: int) -> int:
        """What a worker does."""
        from app.telemetry.logs import configure_logs  # noqa: PLC0415 -- imported by now

        _end_well_when_asked()
        configure_logs(level=self.settings.server.log_level, json=self.settings.json_logs, worker=slot)
        return self._run(app, board)

    def _prepare(self) -> None:
        if self.train_if_empty:
            _train_if_empty(self.settings)
        self.progress.step("importing the web framework")
        self._check()

    def _check(self) -> None:
        """Find out now what would end the start later: addresses, and keys, that cannot be used."""
        # Seconds of imports: after the first line is out, and after the settings and the port are known to be good.
        import uvicorn.loops.auto  # noqa: F401, PLC0415

        import app.api.server  # noqa: F401, PLC0415
        from app.auth.keys import KeyRing  # noqa: PLC0415
        from app.factory import create_app  # noqa: F401, PLC0415
        from app.registry.trust import trust_of  # noqa: PLC0415
        from app.storage.database import Database  # noqa: PLC0415
        from app.storage.redis import open_redis  # noqa: PLC0415
        from app.telemetry.logs import configure_logs  # noqa: PLC0415

        settings = self.settings
        configure_logs(level=settings.server.log_level, json=settings.json_logs)
        Database(settings.storage).close()
        if settings.auth.auth_mode == "jwt":
            KeyRing(settings.auth, production=settings.place.production)
        trust_of(settings.models, production=settings.place.production)
        open_redis(settings.storage)

    def _wants_migration(self) -> bool:
        from app.storage.database import Database  # noqa: PLC0415 -- imported by now

        if not self.migrate:
            return False
        with Database(self.settings.storage) as database:
            return database.schema_state() != "current"

    def _run(self, app: "Service", board: Board | None = None) -> int:
        """The event loop, until it is asked to end."""
        import uvicorn  # noqa: PLC0415 -- imported by now

        from app.api.protocol import guarded  # noqa: PLC0415
        from app.api.server import GRACE_SECONDS, Server  # noqa: PLC0415

        settings, progress = self.settings, self.progress

        def announce_once() -> None:
            if board is None or board.first_to_serve():
                tasks.add(asyncio.create_task(announce(app, settings, progress)))

        tasks: set[asyncio.Task[None]] = set()
        protocol = guarded(settings, app.state.metrics, app.straight)
        config = uvicorn.Config(
            app,
            http=protocol,
            loop="auto",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        lame_duck = settings.server.lame_duck_seconds
        Server(config, protocol, lame_duck, board, announce_once, app.note_stopping).run(sockets=[self.listener])
        return 0


def _end_well_when_asked() -> None:
    """Being asked to stop is no failure: uvicorn stops gracefully and raises the signal again, which ends with 0."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))


def _listen(settings: Settings) -> socket.socket:
    """Bind first: a port that is taken is known before seconds of imports, and in one line."""
    host, port = settings.server.host, settings.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)  # two may bind one address; only one may listen
    except OSError as error:
        listener.close()
        message = f"cannot listen on {host}:{port}: {error.strerror}; set PORT (or HOST) to something else"
        raise PortTaken(message) from None
    listener.set_inheritable(True)
    return listener


def _train_if_empty(settings: Settings) -> None:
    from app.registry.sources import DirectorySource  # noqa: PLC0415 -- only when asked for

    if DirectorySource(settings.models.models_dir).names():
        return
    click.echo(f"presage: {settings.models.models_dir}/ has no models: training the demo models")
    from app.cli.train import train  # noqa: PLC0415 -- scikit-learn, only when there is something to train

    train.main(args=[], standalone_mode=False)


def _migrate_on_a_thread(settings: StorageSettings) -> None:
    """Try for a bounded while, on a thread that neither a frozen database nor SIGTERM waits for."""
    thread = threading.Thread(target=_migrate, args=(settings,), name="migrate", daemon=True)
    thread.start()
    thread.join(_MIGRATE_SECONDS)
    if thread.is_alive():
        log.warning("database_not_migrated", reason=_TAKES_LONGER)


def _migrate_in_a_process(settings: StorageSettings) -> None:
    """The same where this process is going to be forked."""
    pid = fork(partial(_migrate, settings))
    deadline = time.monotonic() + _MIGRATE_SECONDS
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            log.warning("database_not_migrated", reason=_TAKES_LONGER)
            return
        time.sleep(_LOOK_SECONDS)


def _migrate(settings: StorageSettings) -> int:
    # It lists its parts while it is imported, which happens only when there is something to migrate.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from app.storage.migrations import upgrade  # noqa: PLC0415

    try:
        for applied in upgrade(settings, patience=_MIGRATE_SECONDS):
            log.info("database_migrated", revision=applied.revision, title=applied.title)
    except OperatorError as error:
        log.warning("database_not_migrated", reason=str(error))
    return 0
