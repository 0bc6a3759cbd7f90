"""RateLimits: how much of what a caller may have.

A rate such as `60000/minute` is priced in rows. Who asks is a subject or an address; what for is a model, or another
resource. Each pair has a window of its own. Everything is decided here and now, in this process. `Columns`
make the windows of one service's processes one; where REDIS_URL is set, `Sharing` does so for all services.

slowapi's `Limiter` holds configuration and strategy. Its middleware and decorators are not used: they miss the routes
of included routers, count only after the body was read, and know neither rows nor principals.
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NoReturn, Self, cast
from urllib.parse import quote, unquote

from limits import RateLimitItem, parse
from limits.strategies import SlidingWindowCounterRateLimiter
from slowapi import Limiter

from app.config import LimitSettings, StorageSettings
from app.errors import BatchExceedsPlan, RateLimited
from app.limits.columns import Columns
from app.limits.sharing import Sharing
from app.limits.store import Clock, LocalStorage
from app.limits.windows import Window
from app.storage.redis import open_redis
from app.telemetry.metrics import Metrics

__all__ = ["Budget", "Grant", "RateLimits", "Usage"]

Kind = Literal["principal", "address", "attempt"]
Headers = list[tuple[bytes, bytes]]

_MOST_BUDGETS = 50_000
# What floating point adds to a whole number of seconds must not make it one more.
_MICROSECOND = 1e-6
_PERIODS = {1: "a second", 60: "a minute", 3600: "an hour", 86_400: "a day"}


class Budget(RateLimitItem):
    """One caller's rate for one thing, made once for many requests: all that does not change is ready."""

    __slots__ = ("key", "kind", "policy_header", "seconds", "state_header", "what")

    def __init__(self, kind: Kind, policy: str, rate: str, who: str, what: str) -> None:
        """`policy` is the name under which the rate's headers present it. Raises ValueError for what is no rate."""
        parsed = parse(rate)
        super().__init__(parsed.amount)
        self.kind = kind
        self.what = what
        self.seconds = parsed.get_expiry()
        self.policy_header = (b"ratelimit-policy", f'"{policy}";q={self.amount};w={self.seconds}'.encode())
        self.state_header = f'"{policy}";r=%d;t=%d'.encode()
        self.key = f"{self.prefix(kind, who)}{quote(what, safe='')}"

    # The base class compares, and prints, by a calendar's names.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Budget({self.key!r})"

    def prefix(self, kind: Kind, who: str) -> str:
        """How the keys of all windows begin that a caller has under this rate."""
        return f"{self.amount}/{self.seconds}/{kind}/{quote(who, safe='')}/"

    def key_for(self, *_: bytes | str | float) -> str:
        """As the strategy asks for it."""
        return self.key

    def get_expiry(self) -> int:
        """Seconds of the window, as the strategy asks for them."""
        return self.seconds


@dataclass(slots=True)
class Grant:
    """What was taken of a budget: `rows`, from window `number`."""

    budget: Budget
    window: Window
    number: float
    rows: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a caller has used of one thing; `used` and `remaining` in rows."""

    name: str
    limit: int
    window_seconds: int
    used: int
    remaining: int
    reset_seconds: int


class RateLimits:
    """Only for the event loop's thread, and never waits. A context manager, since the sharing has a lifetime."""

    def __init__(
        self,
        settings: LimitSettings,
        storage: StorageSettings,
        metrics: Metrics,
        *,
        clock: Clock = time.monotonic,
        columns: Columns | None = None,
    ) -> None:
        """Connects to nothing yet. Raises InvalidSettings.

        `clock` counts seconds, never goes back, and is the same for all processes that share `columns`.
        """
        self._default = settings.rate_limit
        self._address_rate = settings.address_rate_limit
        limiter = _limiter(clock, columns)
        self._hit = limiter.hit
        self._store = cast("LocalStorage", limiter.storage)
        redis = open_redis(storage)
        self._sharing = Sharing(redis, self._store, metrics, clock) if redis else None
        self._of_principal = lru_cache(_MOST_BUDGETS)(self._principal_budget)
        self._of_other = lru_cache(_MOST_BUDGETS)(Budget)
        self._refused = {kind: metrics.rate_limited.labels(kind).inc for kind in _DETAILS}

    async def __aenter__(self) -> Self:
        if self._sharing:
            self._sharing.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sharing:
            await self._sharing.stop()

    @property
    def state(self) -> Literal["off", "up", "down"]:
        """Whether windows are shared: `off` without REDIS_URL, `down` while this process decides alone."""
        return self._sharing.state if self._sharing else "off"

    def admit(self, who: str, what: str, plan: str | None = None) -> Grant:
        """Take one row; `plan` None is the rate that everybody has. Raises RateLimited."""
        return self._take(self._of_principal(who, what, plan))

    def admit_address(self, address: str) -> Grant:
        """Take one request from the budget of what shows no credential. Raises RateLimited."""
        return self._take(self._of_other("address", "address", self._address_rate, address, ""))

    def attempt(self, key: str, rate: str) -> Grant:
        """Take one attempt, which is given back if it succeeds. Raises RateLimited."""
        return self._take(self._of_other("attempt", "attempts", rate, key, ""))

    def settle(self, grant: Grant, rows: int) -> None:
        """Take the other rows of a request that was let in for one, before any work is done for it.

        Raises BatchExceedsPlan where the plan is smaller than the request, RateLimited where there is no room now. Then
        the one row is given back, too.
        """
        if rows <= 1:
            return
        budget = grant.budget
        if rows <= budget.amount and self._hit(budget, cost=rows - 1):
            grant.rows = rows
            return
        self.give_back(grant)
        if rows > budget.amount:
            detail = f"the batch has {rows} rows, and the plan {_rate(budget, 'rows')} for {budget.what}"
            raise BatchExceedsPlan(detail, headers=self.headers(grant))
        self._refuse(budget, grant.window, rows)

    def give_back(self, grant: Grant) -> None:
        """As if it had not been taken; a second time changes nothing."""
        rows, grant.rows = grant.rows, 0
        self._store.give_back(grant.window, grant.number, rows)

    def headers(self, grant: Grant) -> Headers:
        """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10) as they are now."""
        return self._headers(grant.budget, grant.window)

    def usage(self, who: str, plan: str | None, names: Iterable[str] = ()) -> list[Usage]:
        """For each thing of which the caller has used something lately, in the order of names.

        With columns, `names` are the things that may have been used in another process only.
        """
        for name in names if self._store.columns else ():
            budget = self._of_principal(who, name, plan)
            self._store.used_elsewhere(budget.key, budget.amount, budget.seconds)
        prefix = self._of_principal(who, "", plan).prefix("principal", who)
        found = [(key, window) for key, window in self._store.windows.items() if key.startswith(prefix)]
        usages = [self._usage(unquote(key[len(prefix) :]), window) for key, window in found]
        return sorted((usage for usage in usages if usage.reset_seconds), key=lambda usage: usage.name)

    def _principal_budget(self, who: str, what: str, plan: str | None) -> Budget:
        policy = "default" if plan is None else "client"
        return Budget("principal", policy, plan or self._default, who, what)

    def _take(self, budget: Budget) -> Grant:
        admitted = self._hit(budget)
        window = self._store.windows[budget.key]
        if not admitted:
            self._refuse(budget, window, 1)
        return Grant(budget, window, window.number, 1)

    def _refuse(self, budget: Budget, window: Window, rows: int) -> NoReturn:
        self._refused[budget.kind]()
        wait = window.wait(rows, self._store.elapsed(window)) - _MICROSECOND
        raise RateLimited(
            _DETAILS[budget.kind](budget, rows),
            retry_after=max(1, math.ceil(wait)),
            headers=self._headers(budget, window),
        )

    def _headers(self, budget: Budget, window: Window) -> Headers:
        elapsed = self._store.elapsed(window)
        left, seconds = window.remaining(elapsed), math.ceil((1 - elapsed) * budget.seconds)
        return [budget.policy_header, (b"ratelimit", budget.state_header % (left, seconds))]

    def _usage(self, name: str, window: Window) -> Usage:
        elapsed = self._store.refresh(window)
        used, remaining = math.ceil(window.used(elapsed)), window.remaining(elapsed)
        return Usage(name, window.limit, window.seconds, used, remaining, math.ceil(window.until_whole(elapsed)))


def _limiter(clock: Clock, columns: Columns | None) -> SlidingWindowCounterRateLimiter:
    """The strategy of a `Limiter` that reads no file, and whose store is ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no such file
        limiter = Limiter(
            key_func=str,
            strategy="sliding-window-counter",
            storage_uri="local://",
            storage_options={"clock": clock, "columns": columns},  # type: ignore[dict-item]  # handed on as it is
            config_filename=os.devnull,
        )
    return cast("SlidingWindowCounterRateLimiter", limiter.limiter)


def _rate(budget: Budget, unit: str) -> str:
    return f"of {budget.amount} {unit} {_PERIODS[budget.seconds]}"


def _plan_is_used_up(budget: Budget, rows: int) -> str:
    plan = f"the plan {_rate(budget, 'rows')} for {budget.what}"
    return f"{plan} is used up" if rows == 1 else f"{plan} has no room for {rows} rows now"


def _address_is_used_up(budget: Budget, _: int) -> str:
    return f"without a valid credential, an address has a budget {_rate(budget, 'requests')}, and it is used up"


def _too_many_attempts(*_: object) -> str:
    return "too many failed attempts"


_DETAILS: dict[Kind, Callable[[Budget, int], str]] = {
    "principal": _plan_is_used_up,
    "address": _address_is_used_up,
    "attempt": _too_many_attempts,
}
