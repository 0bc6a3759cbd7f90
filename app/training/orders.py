"""Publications that are ordered at a terminal: what to publish, and the process of its own that does it."""

import contextlib
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict

from app.config import ModelSettings, Settings, SigningSettings, bare_environment
from app.errors import PublishRefused, VersionRefused
from app.manifest import MANIFEST_FILE, Manifest, Task
from app.registry.aliases import Aliases
from app.registry.errands import Errands, Say
from app.registry.mlmodel import DESCRIPTION_FILE
from app.registry.model_keys import read_private_key
from app.registry.signing import sign_version
from app.registry.sources import DirectorySource
from app.release.changes import Releases
from app.release.notes import LATER
from app.storage.database import Database

Kind = Literal["estimator", "version", "mlflow"]
_SUFFIXES = (".joblib", ".pkl", ".pickle", ".skops")


class Order(BaseModel):
    """What to publish, from where on this machine, and under which name.

    `models` are the settings of whoever orders, and `by` is who that is; `origin` says where `source` comes from when
    it is only a download.
    """

    model_config = ConfigDict(frozen=True)

    source: Path
    kind: Kind
    name: str
    models: ModelSettings
    cpu_seconds: int
    by: str
    data: Path | None = None
    target: str = ""
    task: Task | None = None
    description: str = ""
    aliases: tuple[str, ...] = ()
    version: int | None = None
    dry_run: bool = False
    origin: str = ""

    @property
    def title(self) -> str:
        """The source in a word."""
        if self.kind == "version":
            return "/".join(self.source.parts[-2:])
        return self.origin.partition(" ")[0] or self.source.name


def kind_of(source: Path) -> Kind:
    """What a file or a folder is. Raises PublishRefused when it is nothing that can be published."""
    if source.is_file():
        if source.suffix not in _SUFFIXES:
            raise PublishRefused(f"{source} should be a file of a fitted estimator: {', '.join(_SUFFIXES)}")
        return "estimator"
    if (source / MANIFEST_FILE).is_file():
        return "version"
    if (source / DESCRIPTION_FILE).is_file():
        return "mlflow"
    if source.is_dir():
        raise PublishRefused(f"{source} has neither a {MANIFEST_FILE} nor an {DESCRIPTION_FILE}")
    raise PublishRefused(f"there is no file or folder {source}")


def deliver(order: Order, settings: Settings, say: Say) -> Manifest:
    """Publish in a process of its own, which has limits and no secrets; sign it and put it on record here.

    Raises PublishRefused, whatever has happened there, and SigningRefused.
    """
    key = _signing_key(settings.signing)  # a passphrase that is missing should not cost the work
    source = DirectorySource(order.models.models_dir)
    before = _aliases(source, order.name)
    seconds = settings.publishing.publish_seconds
    with Errands("app.training.carrying", bare_environment(), seconds, setting="PUBLISH_SECONDS") as errands:
        manifest = Manifest.model_validate_json(errands.ask(order.model_dump(mode="json"), say))
    if order.dry_run:
        return manifest
    if key is not None:
        say("signing it")
        sign_version(source, manifest.name, manifest.version, key)
    with Database(settings.storage) as database:
        releases = Releases(order.models, database, production=settings.place.production)
        if not releases.note_publication(order.name, manifest.version, order.title, before, by=order.by):
            say(LATER)
    return manifest


def _signing_key(settings: SigningSettings) -> Ed25519PrivateKey | None:
    if settings.model_signing_key is None:
        return None
    return read_private_key(settings.model_signing_key, settings.model_key_passphrase.get_secret_value())


def _aliases(source: DirectorySource, name: str) -> Aliases:
    """None where there is nothing yet, or they cannot be read, which whoever adds to them finds out."""
    with contextlib.suppress(VersionRefused, ValueError):
        return source.aliases(name)
    return {}
