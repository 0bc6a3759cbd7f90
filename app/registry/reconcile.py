"""Reconcile: from what the files want to what is served, one step at a time, without losing what is served now."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import structlog

from app.errors import Refusal, VersionRefused
from app.manifest import TrafficRules
from app.registry.aliases import Aliases
from app.registry.entries import ModelEntry, VersionEntry
from app.registry.sources import DirectorySource

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the files beside the versions say; None for aliases or rules of traffic that cannot be read."""

    aliases: Aliases | None
    traffic: TrafficRules | None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """The model as it is from now on, the versions that are to be loaded, and those that nobody needs any more."""

    entry: ModelEntry
    load: tuple[int, ...] = ()
    released: "tuple[LoadedModel, ...]" = field(default=())


def read_wanted(source: DirectorySource, name: str) -> Wanted:
    """What is on disk; whatever is wrong there is logged, and is a member of the answer."""
    refusal = None
    aliases, traffic = None, None
    try:
        aliases = source.aliases(name)
    except VersionRefused as error:
        refusal = error.refusal
        log.error("aliases_refused", model=name, reason=refusal.reason, detail=refusal.detail)
    try:
        traffic = source.traffic_rules(name)
    except VersionRefused as error:
        refusal = error.refusal
        log.error("traffic_rules_refused", model=name, reason=refusal.reason, detail=refusal.detail)
    return Wanted(aliases, traffic, refusal)


def reconcile(entry: ModelEntry, wanted: Wanted) -> Step:
    """Point each alias where it should, as soon as there is an answer there; until then it stays where it answers.

    All aliases move at once. What no alias names and nobody has asked for is let go.
    """
    aliases = {**entry.aliases, **entry.pending} if wanted.aliases is None else wanted.aliases
    missing = next((alias for alias, version in aliases.items() if version not in entry.versions), None)
    refusal = wanted.refusal
    if missing is not None:
        detail = f"the alias {missing} names version {aliases[missing]}, which does not exist"
        refusal = Refusal("alias_dangles", detail)
        if entry.refusal != refusal:
            log.error("aliases_refused", model=entry.name, reason=refusal.reason, detail=refusal.detail)
    effective = {alias: _target(entry, alias, version) for alias, version in aliases.items()}
    pending = {alias: version for alias, version in aliases.items() if effective[alias] != version}
    needed = {*aliases.values(), *effective.values()}
    versions = {number: _with_need(version, needed=number in needed) for number, version in entry.versions.items()}
    former = entry.versions
    load = tuple(n for n, v in versions.items() if v.state == "loading" and former[n].state != "loading")
    released = tuple(model for n, v in versions.items() if v.model is None and (model := former[n].model) is not None)
    after = replace(
        entry,
        versions=MappingProxyType(versions),
        aliases=effective,
        pending=MappingProxyType(pending),
        refusal=refusal,
        traffic=entry.traffic if wanted.traffic is None else wanted.traffic,
    )
    return Step(after, load, released)


def merge_versions(entry: ModelEntry, on_disk: Mapping[int, VersionEntry]) -> ModelEntry:
    """The model with what is on disk now: what is known is kept, and what has vanished is, too, while it answers."""
    kept = {n: v for n, v in entry.versions.items() if n in on_disk or v.model is not None}
    for number in sorted(kept.keys() - on_disk.keys()):
        log.warning("version_vanished", model=entry.name, version=number)
    return replace(entry, versions=MappingProxyType(dict(sorted({**on_disk, **kept}.items()))))


def _target(entry: ModelEntry, alias: str, wanted: int) -> int:
    before = entry.aliases.get(alias)
    return wanted if before is None or entry.serves(wanted) or not entry.serves(before) else before


def _with_need(version: VersionEntry, *, needed: bool) -> VersionEntry:
    if needed:
        if version.state == "idle":
            return replace(version, state="loading", on_demand=False)
        return replace(version, on_demand=False) if version.on_demand else version
    if version.model is not None and not version.on_demand:
        return replace(version, state="idle", model=None, memory_bytes=0)
    return version
