"""`models keygen`, `sign` and `verify`: whose word it is that a version may be served."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.cli.tables import print_table
from app.cli.versions import check_model, find_version
from app.config import Settings, read_settings
from app.errors import SigningRefused, VersionRefused
from app.registry.model_keys import PassphraseNeeded, make_key_pair, read_private_key
from app.registry.signing import sign_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust, trust_of
from app.registry.verification import verified

_HEAD = ("NAME", "VERSION", "DIGEST", "SIGNATURE", "KEY", "VERDICT")


@click.command()
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(), help="Where to; the current folder.")
@click.option("--passphrase", is_flag=True, help="Encrypt the private key; MODEL_KEY_PASSPHRASE does so, too.")
def keygen(*, name: str, folder: Path, passphrase: bool) -> None:
    """Make a pair of keys for models: NAME.key, which signs, and NAME.pub, which servers need in MODEL_KEYS_DIR."""
    secret = read_settings().signing.model_key_passphrase.get_secret_value()
    if passphrase and not secret:
        secret = click.prompt("Passphrase", hide_input=True, confirmation_prompt=True)
    key = make_key_pair(name, folder, secret)
    click.echo(f"{folder / name}.key signs: keep it where models are published, and nowhere else")
    click.echo(f"{folder / name}.pub belongs into MODEL_KEYS_DIR of every server")
    click.echo(f"fingerprint {key.fingerprint}")


@click.command()
@click.argument("model", metavar="NAME[@VERSION]")
@click.option("--key", type=click.Path(path_type=Path), help="Private key; MODEL_SIGNING_KEY by default.")
@click.option("--all", "every", is_flag=True, help="All versions of the model.")
def sign(*, model: str, key: Path | None, every: bool) -> None:
    """Sign a version, the champion unless VERSION is a number or another alias; one that is broken is not signed."""
    settings = read_settings()
    source = DirectorySource(settings.models.models_dir)
    name, _, wanted = model.partition("@")
    if every and wanted:
        raise click.UsageError("either one version, or --all")
    check_model(source, name)
    versions = source.versions(name) if every else [find_version(source, name, wanted)]
    private = _private_key(settings, key)
    for version in versions:
        made = sign_version(source, name, version, private)
        click.echo(f"{name} {version}: {'signed' if made else 'has this signature already'}")


@click.command()
@click.argument("model", metavar="[NAME[@VERSION]]", required=False)
def verify(*, model: str | None) -> None:
    """Check versions as a server would before it loads them; exit code 1 when one would be refused.

    All versions of all models, those of NAME, or one. Golden rows are not asked: nothing is loaded.
    """
    settings = read_settings()
    trust = trust_of(settings.models, production=settings.place.production)
    source = DirectorySource(settings.models.models_dir)
    rows = [_checked(source, name, version, trust) for name, version in _meant(source, model)]
    print_table(_HEAD, rows, right={"VERSION"})
    sys.exit(any(not row[-1].startswith("ok") for row in rows))


def _meant(source: DirectorySource, model: str | None) -> Iterator[tuple[str, int]]:
    if model is None:
        yield from ((name, version) for name in source.names() for version in source.versions(name))
        return
    name, at, wanted = model.partition("@")
    check_model(source, name)
    yield from ((name, version) for version in ([find_version(source, name, wanted)] if at else source.versions(name)))


def _checked(source: DirectorySource, name: str, version: int, trust: Trust) -> tuple[str, ...]:
    try:
        verdict = "; ".join(["ok", *verified(source, name, version, trust).differences])
    except VersionRefused as error:
        verdict = str(error)
    return name, str(version), _digest(source, name, version), *_signature(source, name, version, trust), verdict


def _digest(source: DirectorySource, name: str, version: int) -> str:
    """The beginning of what the manifest says; whether the artefact has it is for the verdict to say."""
    try:
        return source.manifest(name, version).artefact.sha256[:12]
    except VersionRefused:
        return "-"


def _signature(source: DirectorySource, name: str, version: int, trust: Trust) -> tuple[str, str]:
    """What it is worth, whatever the settings ask for, and whose it is."""
    try:
        judgement = trust.judge(source.document(name, version), source.signatures(name, version))
    except VersionRefused as error:
        return error.refusal.reason, "-"
    return judgement.state, ",".join(judgement.signers) or "-"


def _private_key(settings: Settings, given: Path | None) -> Ed25519PrivateKey:
    path = given or settings.signing.model_signing_key
    if path is None:
        raise SigningRefused("there is no key to sign with: --key FILE, or MODEL_SIGNING_KEY")
    secret = settings.signing.model_key_passphrase.get_secret_value()
    try:
        return read_private_key(path, secret)
    except PassphraseNeeded:
        if not sys.stdin.isatty():
            raise
        return read_private_key(path, click.prompt(f"Passphrase of {path}", hide_input=True, err=True))
