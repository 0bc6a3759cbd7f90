"""The versions on disk, as a change of what is served meets them: by number or alias, proven by loading them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app.config import ModelSettings
from app.errors import ModelNotFound, VersionNotFound, VersionRefused, VersionUnusable
from app.manifest import Manifest
from app.registry.aliases import Aliases
from app.registry.proving import Proving

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel


class Versions:
    """What is in MODELS_DIR now; nothing is kept. Everything blocks."""

    def __init__(self, settings: ModelSettings, *, production: bool = False) -> None:
        """Raises InvalidSettings when signatures are required, and there is no key to check them with."""
        self._proving = Proving(settings, production=production)
        self.source = self._proving.source

    def check_model(self, name: str) -> None:
        """Raises ModelNotFound for a name without a version."""
        names = self.source.names()
        if name not in names:
            known = ", ".join(names) or "none"
            raise ModelNotFound(f"there is no model of that name; models: {known}", models=names)

    def aliases(self, name: str) -> Aliases:
        """What the model's names stand for. Raises ModelNotFound, and VersionUnusable where the file does not fit."""
        self.check_model(name)
        try:
            return self.source.aliases(name)
        except VersionRefused as error:
            raise VersionUnusable(f"the aliases of {name} must be mended first: {error.refusal.reason}") from error

    def number(self, name: str, wanted: int | str) -> int:
        """The number of a version that exists, by its number or an alias. Raises ModelNotFound and VersionNotFound."""
        self.check_model(name)
        there = self.source.versions(name)
        text = str(wanted)
        number = int(text) if text.isascii() and text.isdigit() else self.aliases(name).get(text)
        if number not in there:
            known = ", ".join(map(str, there))
            raise VersionNotFound(f"{name} has no such version; versions: {known}", versions=there)
        return number

    def manifest(self, name: str, version: int) -> Manifest:
        """Raises VersionUnusable when it does not fit."""
        try:
            return self.source.manifest(name, version)
        except VersionRefused as error:
            raise _unusable(name, version, error) from error

    def prove(self, name: str, version: int) -> None:
        """That the service would serve it, found out in a process of its own. Raises VersionUnusable."""
        if not self._proving.tries:
            self.load(name, version)
            return
        with self._told(name, version):
            self._proving.prove(name, version)

    def load(self, name: str, version: int) -> "LoadedModel":
        """The version as the service would serve it: verified, proven and compiled. Raises VersionUnusable.

        It is a copy of its own: a runtime is for one thread at a time, and the service's answers callers.
        """
        with self._told(name, version):
            return self._proving.load(self._proving.prove(name, version))

    @contextmanager
    def _told(self, name: str, version: int) -> Iterator[None]:
        try:
            yield
        except VersionRefused as error:
            raise _unusable(name, version, error) from error
        except Exception as error:
            raise VersionUnusable(f"{name} {version} would not be served: {type(error).__name__}") from error
        finally:
            self._proving.trials.rest()


def _unusable(name: str, version: int, error: VersionRefused) -> VersionUnusable:
    return VersionUnusable(f"{name} {version} would not be served: {error.refusal.reason}")
