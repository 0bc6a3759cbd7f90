"""What the registry knows of models and their versions: never changed, but replaced as a whole."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from app.errors import Refusal
from app.manifest import Manifest, TrafficRules
from app.registry.aliases import CHAMPION, Aliases
from app.registry.watch import Stamps

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

State = Literal["loading", "serving", "refused", "idle"]
PINNED = re.compile(r"v[0-9]+")


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """One version: `serving` with its model, `refused` with the reason, or `idle` until somebody asks for it.

    `on_demand` says that it was loaded since a caller asked for it, and may have to make room for another. A refusal is
    thought over when the files are not those that had these `stamps`, and one that may pass, such as for want of
    memory, once the monotonic clock is at `retry_at`.
    """

    version: int
    state: State
    manifest: Manifest | None = None
    model: "LoadedModel | None" = None
    refusal: Refusal | None = None
    memory_bytes: int = 0
    on_demand: bool = False
    retry_at: float = float("inf")
    stamps: Stamps = ()


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model: its versions in ascending order, what its aliases point to, and how callers are shared out.

    `pending` has aliases that are to point to another version than they do: it is still being loaded, or was refused.
    """

    name: str
    versions: Mapping[int, VersionEntry]
    aliases: Aliases
    refusal: Refusal | None = None
    traffic: TrafficRules = field(default_factory=TrafficRules)
    pending: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def state(self) -> State:
        """That of the whole model: what its champion is, or else the best of what its aliases name."""
        states = {self.versions[v].state for v in self.aliases.values() if v in self.versions}
        champion = self.versions.get(self.aliases.get(CHAMPION, 0))
        if champion is not None:
            return champion.state
        return next((s for s in ("loading", "serving", "refused") if s in states), "refused")

    @property
    def ready(self) -> bool:
        """Whether what callers rely on is served: the champion, and what the pinned API versions (`v1`, …) name."""
        relied_on = [v for alias, v in self.aliases.items() if alias == CHAMPION or PINNED.fullmatch(alias)]
        return CHAMPION in self.aliases and all(self.serves(v) for v in relied_on)

    def serves(self, version: int | None) -> bool:
        """Whether that version answers now."""
        entry = self.versions.get(version) if version is not None else None
        return entry is not None and entry.model is not None

    def known(self) -> str:
        """The versions and aliases that a caller may ask for, as a phrase."""
        numbers = ", ".join(str(v) for v in self.versions) or "none"
        return f"versions: {numbers}; aliases: {', '.join(sorted(self.aliases)) or 'none'}"
