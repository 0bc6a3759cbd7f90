"""`models list`: what is on disk, as a table; nothing is loaded, so it also works where a model cannot be."""

import click

from app.cli.tables import print_table
from app.config import read_settings
from app.errors import VersionRefused
from app.manifest import Manifest
from app.registry.aliases import Aliases
from app.registry.sources import DirectorySource
from app.registry.trust import Trust

_HEAD = ("NAME", "VERSION", "TASK", "ALIASES", "ROWS", "METRIC", "SIZE", "MADE", "SIGNED", "STATE")
_NOT_GOOD = {"unsigned": "-", "unknown_key": "unknown", "signature_invalid": "invalid"}
_RIGHT = {"VERSION", "ROWS", "SIZE"}
# The figures that a model is best known by, the first that it has.
_MAIN_METRICS = ("balanced_accuracy", "r2", "accuracy", "rmse", "mae")


@click.command("list")
def list_models() -> None:
    """List the models in MODELS_DIR: every version, with its aliases and figures."""
    settings = read_settings().models
    source, trust = DirectorySource(settings.models_dir), Trust(keys_dir=settings.model_keys_dir)
    rows = [row for name in source.names() for row in _model(source, name, trust)]
    if not rows:
        click.echo(f"no models in {source.root}; `python -m app train` makes the demo models")
        return
    print_table(_HEAD, rows, right=_RIGHT)


def _model(source: DirectorySource, name: str, trust: Trust) -> list[tuple[str, ...]]:
    broken, aliases = "", Aliases()
    try:
        aliases = source.aliases(name)
    except VersionRefused as error:
        broken = f"aliases: {error}"
    dangling = sorted(alias for alias, version in aliases.items() if version not in source.versions(name))
    if dangling:
        broken = f"aliases: {', '.join(dangling)} without a version"
    rows = []
    for version in source.versions(name):
        *row, state = _version(source, name, version, aliases, broken)
        rows.append((*row, _signed(source, name, version, trust), state))
    return rows


def _signed(source: DirectorySource, name: str, version: int, trust: Trust) -> str:
    """By which keys, in a word or two."""
    try:
        judgement = trust.judge(source.document(name, version), source.signatures(name, version))
    except VersionRefused:
        return "-"
    return ",".join(judgement.signers) if judgement.state == "good" else _NOT_GOOD[judgement.state]


def _version(source: DirectorySource, name: str, version: int, aliases: Aliases, broken: str) -> tuple[str, ...]:
    named = ",".join(sorted(alias for alias, number in aliases.items() if number == version)) or "-"
    try:
        manifest = source.manifest(name, version)
        size = source.folder(name, version).joinpath(manifest.artefact.file).stat().st_size
    except VersionRefused as error:
        return name, str(version), "-", named, "-", "-", "-", "-", str(error)
    except OSError as error:
        return name, str(version), "-", named, "-", "-", "-", "-", f"artefact_unreadable: {error.strerror}"
    made = manifest.origin.created_at.strftime("%Y-%m-%d")
    rows, state = f"{manifest.training.rows:,}", broken or _size_state(manifest, size)
    return name, str(version), manifest.task, named, rows, _metric(manifest), _bytes(size), made, state


def _size_state(manifest: Manifest, size: int) -> str:
    """A size costs nothing to compare; the digest is compared when a version is loaded."""
    return "ok" if size == manifest.artefact.size else "digest_mismatch: the artefact has not the size in its manifest"


def _metric(manifest: Manifest) -> str:
    for evaluation in manifest.training.evaluations:
        for name in _MAIN_METRICS:
            if name in evaluation.metrics:
                return f"{name} {evaluation.metrics[name]:.3f}"
    return "-"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:  # noqa: PLR2004 -- of one unit in the next
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
