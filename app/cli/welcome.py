"""What `serve` prints once it serves: what a newcomer needs to make the first call."""

from typing import TYPE_CHECKING

import click

from app.config import Settings
from app.errors import PresageError
from app.registry.aliases import CHAMPION

if TYPE_CHECKING:
    from app.factory import Service


class Progress:
    """Lines for the person who started the service; where the log is for machines, it has events instead."""

    def __init__(self, *, json: bool) -> None:
        self.shown = not json

    def step(self, line: str) -> None:
        """One line about what happens now."""
        if self.shown:
            click.echo(f"presage: {line}")


async def announce(app: "Service", settings: Settings, progress: Progress) -> None:
    """Say when the models are loaded, and how to make the first call."""
    address = f"http://{_reachable(settings.server.host)}:{settings.server.port}{settings.server.root_path}"
    registry = app.services.registry
    if not registry.settled:
        progress.step(f"listening on {address}; loading models from {settings.models.models_dir}/")
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
        manifest = app.services.registry.resolve(name, CHAMPION).manifest
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
