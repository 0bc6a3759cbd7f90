"""Traffic: which version answers a caller who names none, and why a version that should have a part in it gets none.

The champion answers, and for a share of the keys the challenger. Which keys these are is a matter of arithmetic alone:
every process comes to the same, now and after a restart, and a greater weight only adds keys.
"""

from collections.abc import Container, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

import structlog

from app.manifest import InputField, Manifest, TrafficRules
from app.pipelines.base import to_json
from app.registry.aliases import CHALLENGER, CHAMPION
from app.registry.entries import ModelEntry, VersionEntry
from app.registry.registry import ModelRegistry
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

log = structlog.get_logger(__name__)

Hindrance = Literal[
    "loading", "no_champion", "not_served", "same_version", "other_task", "other_inputs", "unknown_field", "hung"
]
_DIGEST_BYTES = 8
_KEYS = 1 << 8 * _DIGEST_BYTES


class Split:
    """Which keys are the challenger's; `header` or `field` names where the key is, else it is the principal."""

    def __init__(self, model: str, challenger: int, rules: TrafficRules) -> None:
        kind, _, name = rules.sticky_by.partition(":")
        self.header = name.lower().encode() if kind == "header" else None
        self.field = name if kind == "field" else None
        self._prefix = blake2b(to_json([model, challenger]), digest_size=_DIGEST_BYTES)
        self._end = int(rules.challenger_weight * _KEYS)

    def takes(self, key: bytes) -> bool:
        """Whether the challenger answers for it."""
        digest = self._prefix.copy()
        digest.update(key)
        return int.from_bytes(digest.digest(), "big") < self._end


class Traffic:
    """The splits of all models, made anew when anything about the models has changed."""

    def __init__(self, registry: ModelRegistry, metrics: Metrics) -> None:
        self._registry = registry
        self._notices = Notices(CHALLENGER, metrics)
        self._generation = -1
        self._splits: Mapping[str, Split] = {}

    def split(self, name: str) -> Split | None:
        """How callers of a model are shared out; None where the champion answers all, as nearly always."""
        if self._generation != self._registry.generation:
            self._renew()
        return self._splits.get(name)

    def challenger(self, name: str) -> "LoadedModel | None":
        """What answers for the keys that the split takes; None in the moment in which it goes."""
        entry = self._registry.models.get(name)
        version = named(entry, CHALLENGER) if entry is not None else None
        return version.model if version is not None else None

    def _renew(self) -> None:
        self._generation = self._registry.generation
        entries = [entry for entry in self._registry.models.values() if CHALLENGER in entry.aliases]
        self._splits = {
            entry.name: Split(entry.name, entry.aliases[CHALLENGER], entry.traffic)
            for entry in entries
            if entry.traffic.challenger_weight and hindrance(entry, CHALLENGER) is None
        }
        self._notices.update({entry.name: entry for entry in entries if entry.traffic.challenger_weight})


class Notices:
    """Says in the log once, and as a metric for as long as it is so, why versions with an alias get no rows."""

    def __init__(self, alias: str, metrics: Metrics) -> None:
        self._alias = alias
        self._gauge = metrics.traffic_stopped
        self._known: dict[str, tuple[int, Hindrance]] = {}

    def update(self, entries: Mapping[str, ModelEntry], hung: Container[str] = ()) -> None:
        """These are the models that should have such a version; of others there is nothing to be said."""
        for name in self._known.keys() - entries.keys():
            self.clear(name)
        for name, entry in entries.items():
            reason = "hung" if name in hung else hindrance(entry, self._alias)
            if reason is None or reason == "loading":
                self.clear(name)
            else:
                self.say(name, entry.aliases[self._alias], reason)

    def say(self, name: str, version: int, reason: Hindrance) -> None:
        """It gets none, for that reason."""
        if self._known.get(name) == (version, reason):
            return
        self.clear(name)
        self._known[name] = (version, reason)
        self._gauge.labels(name, str(version), self._alias, reason).set(1)
        log.warning("traffic_stopped", model=name, version=version, alias=self._alias, reason=reason)

    def clear(self, name: str) -> None:
        """Nothing keeps it from having rows."""
        known = self._known.pop(name, None)
        if known is not None:
            self._gauge.remove(name, str(known[0]), self._alias, known[1])
            log.info("traffic_free", model=name, version=known[0], alias=self._alias)


def hindrance(entry: ModelEntry, alias: str) -> Hindrance | None:
    """Why the version with the alias `challenger` or `shadow` gets none of the champion's rows; None: it may have them.

    A challenger has to take every row that the champion takes, since its callers know nothing of it. A shadow may
    refuse some.
    """
    champion, other = named(entry, CHAMPION), named(entry, alias)
    if champion is None or champion.model is None:
        return "loading" if champion is not None and champion.state == "loading" else "no_champion"
    if other is None or other.model is None:
        return "loading" if other is not None and other.state == "loading" else "not_served"
    if other.version == champion.version:
        return "same_version"
    one, two = champion.model.manifest, other.model.manifest
    if (one.task == "regression") != (two.task == "regression"):
        return "other_task"
    return _hindrance_of_challenger(one, two, entry.traffic) if alias == CHALLENGER else None


def _hindrance_of_challenger(champion: Manifest, challenger: Manifest, rules: TrafficRules) -> Hindrance | None:
    if not takes_all_of(challenger, champion):
        return "other_inputs"
    kind, _, name = rules.sticky_by.partition(":")
    known = kind != "field" or any(field.name == name for field in champion.fields)
    return None if known else "unknown_field"


def named(entry: ModelEntry, alias: str) -> VersionEntry | None:
    """The version that the alias names, where there is one."""
    return entry.versions.get(entry.aliases.get(alias, 0))


def takes_all_of(one: Manifest, other: Manifest) -> bool:
    """Whether one version takes, and knows, every row that the other takes."""
    fields = {field.name: field for field in one.fields}
    names = {field.name for field in other.fields}
    return fields.keys() == names and all(_takes(fields[field.name], field) for field in other.fields)


def _takes(one: InputField, other: InputField) -> bool:
    """Whether a field takes every value that another does; the ranges that training saw refuse nothing."""
    if one.dtype != other.dtype or (other.missing == "allow" and one.missing == "refuse"):
        return False
    known = {(type(value), value) for value in one.categories or ()}
    wanted = {(type(value), value) for value in other.categories or ()}
    return wanted <= known and (one.max_length or 0) >= (other.max_length or 0)
