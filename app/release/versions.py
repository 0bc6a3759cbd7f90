"""The versions on disk, as a change of what is served meets them: by number or alias, proven by loading them."""

from typing import TYPE_CHECKING

from app.config import ModelSettings
from app.errors import ModelNotFound, VersionNotFound, VersionRefused, VersionUnusable
from app.manifest import Manifest
from app.registry.aliases import Aliases
from app.registry.sources import DirectorySource
from app.registry.trust import Trust

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel


class Versions:
    """What is in MODELS_DIR now; nothing is kept. Everything blocks."""

    def __init__(self, settings: ModelSettings) -> None:
        self.source = DirectorySource(settings.models_dir)
        self._trust = Trust(settings.model_modules)
        self._compile = settings.compile == "auto"

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

    def load(self, name: str, version: int) -> "LoadedModel":
        """The version as the service would serve it: verified, proven and compiled. Raises VersionUnusable.

        It is a copy of its own: a runtime is for one thread at a time, and the service's answers callers.
        """
        # scikit-learn takes seconds to import, and what only reads aliases can do without.
        from app.registry.loader import load_version  # noqa: PLC0415
        from app.runtimes.compile import Compiling  # noqa: PLC0415

        compiling = Compiling(lambda: None) if self._compile else None
        try:
            return load_version(self.source, name, version, self._trust, compiling)
        except VersionRefused as error:
            raise _unusable(name, version, error) from error
        except Exception as error:
            raise VersionUnusable(f"{name} {version} would not be served: {type(error).__name__}") from error


def _unusable(name: str, version: int, error: VersionRefused) -> VersionUnusable:
    return VersionUnusable(f"{name} {version} would not be served: {error.refusal.reason}")
