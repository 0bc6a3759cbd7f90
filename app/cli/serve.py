"""`serve`: the service in this process, with a progress line for each step, and at the end what a newcomer needs."""

import asyncio
import logging
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

import click
import structlog

from app.config import Settings, StorageSettings, read_settings
from app.errors import OperatorError, PresageError

if TYPE_CHECKING:
    from app.factory import Service

log = structlog.get_logger(__name__)

_BACKLOG = 2048
# How long requests in flight may take after SIGTERM.
_GRACE_SECONDS = 20
# How long the start waits for a migration; predictions do not need the database.
_MIGRATE_SECONDS = 15


class PortTaken(OperatorError):
    """Somebody else listens where the service should."""


@click.command()
@click.option("--train-if-empty", is_flag=True, help="Make the demo models first when the models folder has none.")
@click.option("--migrate", is_flag=True, help="Migrate the database first; one that is away does not stop the start.")
def serve(*, train_if_empty: bool, migrate: bool) -> None:
    """Serve the models in MODELS_DIR on HOST and PORT until stopped."""
    # uvicorn stops gracefully, then raises the signal again; being asked to stop is no failure, so that ends with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    settings = read_settings()
    listener = _listen(settings)
    if train_if_empty:
        _train_if_empty(settings)
    progress = Progress(json=settings.json_logs)
    progress.step("importing the web framework")
    # Seconds of imports: after the first line is out, and after the settings and the port are known to be good.
    import uvicorn  # noqa: PLC0415

    from app.api.protocol import guarded  # noqa: PLC0415
    from app.auth.keys import KeyRing  # noqa: PLC0415
    from app.factory import create_app  # noqa: PLC0415
    from app.storage.database import Database  # noqa: PLC0415
    from app.storage.redis import open_redis  # noqa: PLC0415
    from app.telemetry.logs import configure_logs  # noqa: PLC0415

    configure_logs(level=settings.server.log_level, json=settings.json_logs)
    with Database(settings.storage) as database:  # an address that cannot be used ends the start here
        if migrate and database.schema_state() != "current":
            _migrate(settings.storage)
    if settings.auth.auth_mode == "jwt":
        KeyRing(settings.auth, production=settings.place.production)  # and so do keys,
    open_redis(settings.storage)  # and the other address
    app = create_app(settings)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            self.announcement = asyncio.create_task(_announce(app, settings, progress))

    config = uvicorn.Config(
        app,
        http=guarded(settings, app.state.metrics, app.straight),
        loop="auto",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    Server(config).run(sockets=[listener])


class Progress:
    """Lines for the person who started the service; where the log is for machines, it has events instead."""

    def __init__(self, *, json: bool) -> None:
        self.shown = not json

    def step(self, line: str) -> None:
        """One line about what happens now."""
        if self.shown:
            click.echo(f"presage: {line}")


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


def _migrate(settings: StorageSettings) -> None:
    """Try for a bounded while, on a thread that neither a frozen database nor SIGTERM waits for."""
    # It lists its parts while it is imported, which happens only when there is something to migrate.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from app.storage.migrations import upgrade  # noqa: PLC0415

    def attempt() -> None:
        try:
            for applied in upgrade(settings, patience=_MIGRATE_SECONDS):
                log.info("database_migrated", revision=applied.revision, title=applied.title)
        except OperatorError as error:
            log.warning("database_not_migrated", reason=str(error))

    thread = threading.Thread(target=attempt, name="migrate", daemon=True)
    thread.start()
    thread.join(_MIGRATE_SECONDS)
    if thread.is_alive():
        log.warning("database_not_migrated", reason="it takes longer, and goes on beside the service")


async def _announce(app: "Service", settings: Settings, progress: Progress) -> None:
    """Say when the models are loaded, and how to make the first call."""
    address = f"http://{_reachable(settings.server.host)}:{settings.server.port}{settings.server.root_path}"
    progress.step(f"listening on {address}; loading models from {settings.models.models_dir}/")
    registry = app.services.registry
    await registry.loaded()
    if not registry.ready:
        progress.step(f"not ready: {address}/health/ready says why")
    elif progress.shown:
        click.echo(_welcome(app, settings, address))


def _welcome(app: "Service", settings: Settings, address: str) -> str:
    """What a newcomer needs: the address, the docs page, and a call that works when it is pasted."""
    served = [name for name, entry in app.services.registry.models.items() if entry.state == "serving"]
    lines = ["", f"  Presage is ready   {address}", f"  models             {', '.join(served)}"]
    if settings.place.docs_exposure == "on":
        lines.append(f"  docs page          {address}/docs")
    return "\n".join([*lines, "", "  Try it:", "", _curl(app, address, served), ""])


def _curl(app: "Service", address: str, served: list[str]) -> str:
    if _serves_v1(app):
        path, body = "/predict", '{"text": "I love this product"}'
    else:
        from app.pipelines.base import to_json  # noqa: PLC0415 -- imported by now

        default = app.settings.models.default_model
        name = default if default in served else served[0]
        manifest = app.services.registry.resolve(name, "champion").manifest
        path, body = f"/v2/predict/{name}", to_json({"inputs": manifest.golden.rows[0].inputs}).decode()
    quoted = body.replace("'", "'\\''")
    token = _token(app)
    bearer = f"-H 'Authorization: Bearer {token}' " if token else ""
    return f"  curl {address}{path} {bearer}-H 'Content-Type: application/json' -d '{quoted}'"


def _token(app: "Service") -> str | None:
    """One that lets a newcomer predict, for as long as tokens last; in production it is not for the terminal."""
    settings = app.settings
    if settings.auth.auth_mode != "jwt" or settings.place.production:
        return None
    try:
        return app.services.authenticator.issue("newcomer", frozenset({"predict"}), settings.auth.token_seconds)
    except PresageError:  # tokens come from elsewhere
        return None


def _serves_v1(app: "Service") -> bool:
    from app.api.v1 import ALIAS, FIELD, MODEL  # noqa: PLC0415 -- imported by now

    try:
        return app.services.registry.resolve(MODEL, ALIAS).pipeline.names == (FIELD,)
    except PresageError:
        return False


def _reachable(host: str) -> str:
    """An address that a client on this machine can use."""
    named = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 -- compared with, not bound to
    return f"[{named}]" if ":" in named and not named.startswith("[") else named
