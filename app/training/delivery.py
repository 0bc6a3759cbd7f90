"""How an order is delivered: carried out in a process of its own, then signed and put on record here."""

import contextlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.config import Settings, SigningSettings, bare_environment
from app.errors import VersionRefused
from app.manifest import Manifest
from app.registry.aliases import Aliases
from app.registry.errands import Errands, Say
from app.registry.model_keys import read_private_key
from app.registry.signing import sign_version
from app.registry.sources import DirectorySource
from app.release.changes import Releases
from app.release.notes import LATER
from app.storage.database import Database
from app.training.orders import Order


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
    """Empty where there is nothing yet, or they cannot be read, which whoever adds to them finds out."""
    with contextlib.suppress(VersionRefused, ValueError):
        return source.aliases(name)
    return {}
