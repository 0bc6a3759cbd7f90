"""The end of every publication: the staged version is proven, it gets its name, and aliases point at it."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.errors import PublishRefused, VersionRefused
from app.manifest import SIGNATURES_FILE, is_alias, is_model_name
from app.registry.aliases import ALIASES_FILE, CHAMPION, Aliases, changing_model, pointed, write_aliases
from app.registry.loader import load_version
from app.registry.signatures import signed
from app.registry.sources import DirectorySource
from app.training.options import Options
from app.training.staging import Stage


def check_names(source: DirectorySource, name: str, options: Options) -> None:
    """Raises PublishRefused when names are not as they must be, or aliases as they are could not be added to."""
    if not is_model_name(name):
        raise PublishRefused("a model's name has 1 to 64 lower-case letters, digits and inner hyphens")
    for alias in options.aliases:
        if not is_alias(alias):
            raise PublishRefused(f"{alias!r} is not an alias: a lower-case word of at most 32 letters, digits, hyphens")
    _present_aliases(source, name)


def place(stage: Stage, options: Options, key: Ed25519PrivateKey | None = None) -> None:
    """Prove the version, sign it where there is a `key`, give it its name, and point the aliases at it.

    The first version of a model becomes its champion.

    Raises PublishRefused; the version is then nowhere.
    """
    _prove(stage, options)
    if key is not None:
        stage.write(SIGNATURES_FILE, signed(stage.source.document(stage.name, stage.version), None, key))
    with changing_model(stage.target.parent):
        aliases = _present_aliases(stage.models, stage.name)
        wanted = options.aliases if stage.models.versions(stage.name) else (CHAMPION, *options.aliases)
        stage.reveal()
        if wanted:
            write_aliases(stage.target.parent / ALIASES_FILE, pointed(aliases, stage.version, wanted))


def _prove(stage: Stage, options: Options) -> None:
    """Load it as a server will."""
    try:
        load_version(stage.source, stage.name, stage.version, options.trust)
    except VersionRefused as error:
        raise PublishRefused(f"{stage.name} {stage.version} would not be served: {error}") from None


def _present_aliases(source: DirectorySource, name: str) -> Aliases:
    """What is served now; without a file, the newest version is the champion, and stays it if a file is written."""
    if not source.versions(name):
        return {}
    try:
        return source.aliases(name)
    except VersionRefused as error:
        raise PublishRefused(f"the aliases of {name} must be mended first: {error}") from None
