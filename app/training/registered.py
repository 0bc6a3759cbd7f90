"""Models that are registered with MLflow: brought here once, or whenever an alias of MLflow's moves."""

import contextlib
import tempfile
import time
from pathlib import Path

from app.config import Settings
from app.errors import PublishRefused, VersionRefused
from app.manifest import Manifest
from app.registry.aliases import ALIASES_FILE, changing_model, pointed, write_aliases
from app.registry.errands import Say, silent
from app.registry.mlflow_source import MlflowSource, Registered
from app.registry.sources import DirectorySource
from app.training.delivery import deliver
from app.training.orders import Order

# What was refused may have been refused for want of space, or by settings that are mended by now.
_RETRY_SECONDS = 600.0


def publish_registered(
    order: Order, registered: Registered, mlflow: MlflowSource, settings: Settings, say: Say
) -> Manifest:
    """Download a model and publish it, as `order` says of name and aliases. Raises PublishRefused."""
    with tempfile.TemporaryDirectory(prefix="presage-mlflow-") as folder:
        files = mlflow.fetch(registered, Path(folder), say)
        return deliver(_downloaded(order, registered, files), settings, say)


class Follower:
    """Has aliases of a model here stand for what an alias of MLflow's stands for.

    A version that was published before is not published again, however often this is started. What somebody else does
    with the aliases here stays until MLflow's alias moves.
    """

    def __init__(self, source: str, order: Order, mlflow: MlflowSource, settings: Settings, say: Say) -> None:
        self._source, self._order, self._mlflow, self._settings = source, order, mlflow, settings
        self._say = say
        self._state = ""
        self._settled: Registered | None = None
        self._refused: Registered | None = None
        self._refusal, self._retry_at = "", 0.0

    def look(self) -> None:
        """Look once, do what there is to do, and say how things are, unless they are as they were."""
        try:
            state = self._follow(self._mlflow.resolve(self._source, silent))
        except PublishRefused as error:
            state = str(error)
        if state != self._state:
            self._state = state
            self._say(state)

    def _follow(self, registered: Registered) -> str:
        if registered != self._settled:
            version = self._published(registered)
            if version is None:
                self._publish(registered)
            else:
                self._point(version)
            self._settled = registered
        return f"{self._order.name} {self._published(registered)} is {registered.uri}"

    def _publish(self, registered: Registered) -> None:
        if registered == self._refused and time.monotonic() < self._retry_at:
            raise PublishRefused(self._refusal)
        with tempfile.TemporaryDirectory(prefix="presage-mlflow-") as folder:
            files = self._mlflow.fetch(registered, Path(folder), self._say)
            try:
                deliver(_downloaded(self._order, registered, files), self._settings, self._say)
            except PublishRefused as error:
                self._refusal, self._refused = f"{registered.uri}: {error}", registered
                self._retry_at = time.monotonic() + _RETRY_SECONDS
                raise PublishRefused(self._refusal) from None

    def _point(self, version: int) -> None:
        """The aliases at a version that is there already, unless they stand for it."""
        home = self._models.root / self._order.name
        try:
            with changing_model(home):
                aliases = self._models.aliases(self._order.name)
                if any(aliases.get(alias) != version for alias in self._order.aliases):
                    write_aliases(home / ALIASES_FILE, pointed(aliases, version, self._order.aliases))
        except VersionRefused as error:
            raise PublishRefused(f"the aliases of {self._order.name} must be mended first: {error}") from None

    def _published(self, registered: Registered) -> int | None:
        """The newest version here that was made of it."""
        for version in reversed(self._models.versions(self._order.name)):
            with contextlib.suppress(VersionRefused):
                if self._models.manifest(self._order.name, version).origin.recipe == registered.origin:
                    return version
        return None

    @property
    def _models(self) -> DirectorySource:
        return DirectorySource(self._settings.models.models_dir)


def _downloaded(order: Order, registered: Registered, files: Path) -> Order:
    return order.model_copy(
        update={
            "source": files,
            "kind": "mlflow",
            "origin": registered.origin,
            "description": order.description or registered.description,
        }
    )
