"""What concerns all connections of a process at once: their deadlines, and how many one address has."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol

from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl

from app.api.edge import budget_address, within
from app.api.heads import Begin, KnownHeads
from app.config import Settings
from app.telemetry.metrics import Metrics

_LONGEST_TICK = 0.25
_TICKS = 4


class Overdue(Protocol):
    """A connection that can be told that its time is up."""

    flow: FlowControl

    def overdue(self) -> None:
        """Its caller has had the time that it may have."""


class Deadlines:
    """One timer for all connections that wait for their callers; most requests come whole and never get here.

    A connection is told at the earliest when its seconds are over, and at most two ticks later. Time in which we do not
    read, or in which the loop stood still, is not the caller's.
    """

    def __init__(self, *seconds: float) -> None:
        """`seconds`: the deadlines that there will be; the shortest of them decides how often it looks."""
        self._tick = min(_LONGEST_TICK, *(each / _TICKS for each in seconds))
        self._left: dict[Overdue, float] = {}
        self._looked = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self, connection: Overdue, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        """From now on; a deadline that it has is forgotten."""
        self._left[connection] = seconds + self._tick  # some of the current tick is over
        if self._timer is None:
            self._schedule(loop)

    def clear(self, connection: Overdue) -> None:
        """Nothing is waited for any more."""
        self._left.pop(connection, None)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looked = loop.time()
        self._timer = loop.call_later(self._tick, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        spent = min(loop.time() - self._looked, 2 * self._tick)
        self._timer = None
        if self._left:
            self._schedule(loop)  # first, so that it goes on looking whatever happens
        for connection, left in list(self._left.items()):
            if connection.flow.read_paused:
                continue
            if left > spent:
                self._left[connection] = left - spent
            else:
                del self._left[connection]
                connection.overdue()


class Addresses:
    """How many connections each address has open. Trusted proxies have as many as they like."""

    def __init__(self, most: int, trusted: Sequence[IPv4Network | IPv6Network]) -> None:
        """`most`: of one address; 0 for any number."""
        self.most = most
        self._trusted = trusted
        self._open: Counter[str] = Counter()

    def enter(self, peer: str) -> tuple[str, int]:
        """Count one more; the name to leave under, and how many there are now. Nothing is counted where none has to."""
        if not self.most or within(peer, self._trusted):
            return "", 0
        network = budget_address({"client": (peer, 0)})
        self._open[network] += 1
        return network, self._open[network]

    def leave(self, network: str) -> None:
        """Count one less."""
        if network:
            self._open[network] -= 1
            if not self._open[network]:
                del self._open[network]


class Wire:
    """What all connections of a process share: the bounds, and what is counted over all of them."""

    def __init__(self, settings: Settings, metrics: Metrics, straight: Callable[[Scope], Begin | None]) -> None:
        bounds = settings.bounds
        self.most_url_bytes = bounds.max_url_bytes
        self.most_header_bytes = bounds.max_header_bytes
        self.most_headers = bounds.max_headers
        self.header_seconds = bounds.header_seconds
        self.body_seconds = bounds.body_seconds
        self.deadlines = Deadlines(bounds.header_seconds, bounds.body_seconds)
        self.addresses = Addresses(bounds.max_connections_per_address, settings.edge.trusted_proxies)
        self.heads = KnownHeads(straight)
        self.metrics = metrics
        self.closing = False  # whether each answer ends its connection
