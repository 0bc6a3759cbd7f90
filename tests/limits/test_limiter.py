"""One process: what is let in, what a refusal says, and what is kept."""

import tracemalloc
from contextlib import suppress

import pytest
import time_machine
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config import LimitSettings, StorageSettings
from app.errors import BatchExceedsPlan, RateLimited
from app.limits.limiter import Grant, RateLimits, Usage
from app.telemetry.metrics import Metrics
from tests.support.limits import ManualClock, admitted, rate_limits
from tests.support.sliding_window import TICKS, Reference

RATES = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}

steps = st.one_of(
    st.tuples(st.just("wait"), st.integers(0, 90 * TICKS)),
    st.tuples(st.just("ask"), st.integers(1, 12)),
    st.tuples(st.just("give_back"), st.integers(0, 30)),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(RATES)), st.integers(1, 30), st.lists(steps, max_size=60))
def test_what_is_let_in_is_what_the_definition_of_the_sliding_window_says(
    period: str, count: int, story: list[tuple[str, int]]
) -> None:
    """Over any sequence of requests, pauses and rows given back, decisions and counts are those of exact arithmetic."""
    clock = ManualClock()
    limits = rate_limits(f"{count}/{period}", clock)
    reference = Reference(count, RATES[period])
    grants: list[tuple[Grant, int]] = []
    ticks = 0
    for verb, number in story:
        if verb == "wait":
            ticks += number
            clock.now = ticks / TICKS
        elif verb == "give_back" and grants:
            grant, event = grants.pop(number % len(grants))
            limits.give_back(grant)
            reference.give_back(event)
        elif verb == "ask" and number <= count:
            asked = reference.ask(ticks, number)
            try:
                grant = limits.admit("alice", "iris")
                limits.settle(grant, number)
            except RateLimited:
                assert asked is None
            else:
                assert asked is not None
                grants.append((grant, asked))
        used = limits.usage("alice", None)
        assert (used[0].remaining if used else count) == reference.remaining(ticks)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 40 * TICKS), st.integers(1, 40)), max_size=12),
    st.integers(1, 40),
)
def test_retry_after_is_the_first_whole_second_at_which_it_fits(
    count: int, before: list[tuple[int, int]], rows: int
) -> None:
    """What was refused is let in after `retry_after` seconds, and was not to be had a second earlier."""
    rows = min(rows, count)
    story = [(pause, min(number, count)) for pause, number in before]
    clock = ManualClock()
    limits = rate_limits(f"{count}/minute", clock)
    for pause, number in story:
        clock.now += pause / TICKS
        _wait(limits, number, keep=True)
    wait = _wait(limits, 1)  # before the rows are counted, a request asks for one
    asked = 1 if wait else rows
    wait = wait or _wait(limits, rows)
    now = clock.now
    if wait > 1:
        clock.now = now + wait - 1
        assert _wait(limits, asked) == 1
    clock.now = now + wait
    assert _wait(limits, asked) == 0


def test_a_refusal_consumes_nothing() -> None:
    """A hundred refused batches later, exactly what was left is still there."""
    limits = rate_limits("10/minute", ManualClock())
    assert admitted(limits, "alice", 4) == 4
    for _ in range(100):
        with pytest.raises(RateLimited, match="of 10 rows a minute for iris has no room for 7 rows now"):
            limits.settle(limits.admit("alice", "iris"), 7)
    assert admitted(limits, "alice", 100) == 6


def test_a_batch_larger_than_the_plan_is_told_so_and_costs_nothing() -> None:
    """It will never fit, so the answer is not to wait."""
    limits = rate_limits("10/minute", ManualClock())
    with pytest.raises(BatchExceedsPlan, match="11 rows, and the plan of 10 rows a minute for iris") as refused:
        limits.settle(limits.admit("alice", "iris"), 11)
    assert refused.value.retry_after is None
    limits.settle(limits.admit("alice", "iris"), 10)
    assert admitted(limits, "alice") == 0


def test_rows_are_given_back_once() -> None:
    """Giving back twice makes no room that was not there."""
    limits = rate_limits("10/minute", ManualClock())
    grant = limits.admit("alice", "iris")
    limits.settle(grant, 10)
    limits.give_back(grant)
    limits.give_back(grant)
    assert admitted(limits, "alice", 20) == 10


def test_callers_and_models_do_not_draw_on_one_another() -> None:
    """Each pair of a caller and a model has a window of its own, whatever characters are in their names."""
    limits = rate_limits("2/minute", ManualClock())
    pairs = [("a", "b/c"), ("a/b", "c"), ("a", "b"), ("a%2Fb", "c"), ("", "a/b/c"), ("ä ", "b")]
    for who, what in pairs:
        assert admitted(limits, who, 5, what) == 2
    assert [usage.name for usage in limits.usage("a", None)] == ["b", "b/c"]


def test_headers_say_the_policy_and_what_is_left_of_it() -> None:
    """As draft-ietf-httpapi-ratelimit-headers-10 writes them: quota and window, then rest and seconds."""
    clock = ManualClock(120.0)
    limits = rate_limits("60000/minute", clock)
    grant = limits.admit("alice", "iris")
    limits.settle(grant, 59_958)
    clock.now = 163.0
    assert limits.headers(grant) == [
        (b"ratelimit-policy", b'"default";q=60000;w=60'),
        (b"ratelimit", b'"default";r=42;t=17'),
    ]


def test_a_plan_of_ones_own_has_its_own_name_and_size() -> None:
    """A client's plan replaces the rate that everybody has."""
    limits = rate_limits("5/minute", ManualClock())
    grant = limits.admit("alice", "iris", "2/hour")
    assert limits.headers(grant) == [
        (b"ratelimit-policy", b'"client";q=2;w=3600'),
        (b"ratelimit", b'"client";r=1;t=3600'),
    ]
    limits.admit("alice", "iris", "2/hour")
    with pytest.raises(RateLimited, match=r"^the plan of 2 rows an hour for iris is used up$") as refused:
        limits.admit("alice", "iris", "2/hour")
    assert refused.value.headers[1] == (b"ratelimit", b'"client";r=0;t=3600')
    assert refused.value.retry_after == 3600 + 1800


def test_an_address_has_a_budget_of_its_own() -> None:
    """What shows no credential draws on its address, apart from any caller of that name."""
    limits = rate_limits("5/minute", ManualClock(), address_rate="3/minute")
    grants = [limits.admit_address("192.0.2.1") for _ in range(3)]
    assert limits.headers(grants[-1])[0] == (b"ratelimit-policy", b'"address";q=3;w=60')
    with pytest.raises(RateLimited, match="an address has a budget of 3 requests a minute"):
        limits.admit_address("192.0.2.1")
    limits.admit_address("192.0.2.2")
    assert admitted(limits, "192.0.2.1", 9) == 5


def test_attempts_that_succeed_are_given_back() -> None:
    """Only those that fail use up the rate."""
    limits = rate_limits("5/minute", ManualClock())
    for _ in range(50):
        limits.give_back(limits.attempt("alice", "3/minute"))
    for _ in range(3):
        limits.attempt("alice", "3/minute")
    with pytest.raises(RateLimited, match=r"^too many failed attempts$"):
        limits.attempt("alice", "3/minute")


def test_refusals_are_counted_by_what_they_protect() -> None:
    """The metric has three values of its label and no caller in it."""
    metrics = Metrics()
    rates = LimitSettings(rate_limit="1/minute", address_rate_limit="1/minute")
    limits = RateLimits(rates, StorageSettings(), metrics)
    for _ in range(3):
        with suppress(RateLimited):
            limits.admit("alice", "iris")
    for _ in range(2):
        with suppress(RateLimited):
            limits.admit_address("192.0.2.1")
    with suppress(RateLimited):
        limits.attempt("alice", "1/minute")
    counts = {
        kind: metrics.registry.get_sample_value("presage_rate_limited_total", {"kind": kind})
        for kind in ("principal", "address", "attempt")
    }
    assert counts == {"principal": 2, "address": 1, "attempt": 0}


def test_usage_lists_what_was_used_and_forgets_what_no_longer_counts() -> None:
    """One entry for each thing, of this caller and this plan, until all of it is there again."""
    clock = ManualClock(120.0)
    limits = rate_limits("100/minute", clock)
    limits.settle(limits.admit("alice", "wine"), 40)
    limits.admit("alice", "iris")
    limits.admit("alicia", "iris")
    clock.now = 150.0
    assert limits.usage("alice", None) == [
        Usage("iris", limit=100, window_seconds=60, used=1, remaining=99, reset_seconds=90),
        Usage("wine", limit=100, window_seconds=60, used=40, remaining=60, reset_seconds=90),
    ]
    clock.now = 210.0
    assert [(usage.used, usage.reset_seconds) for usage in limits.usage("alice", None)] == [(1, 30), (20, 30)]
    clock.now = 240.0
    assert limits.usage("alice", None) == []
    assert limits.usage("alice", "7/minute") == []


def test_the_wall_clock_changes_nothing() -> None:
    """Neither a day forwards nor a day backwards makes room, or takes it."""
    limits = rate_limits("5/day")
    assert admitted(limits, "alice", 3) == 3
    with time_machine.travel("2040-01-01", tick=True):
        assert admitted(limits, "alice", 5) == 2
    with time_machine.travel("2001-01-01", tick=True):
        assert admitted(limits, "alice", 5) == 0


def test_the_least_recently_used_window_is_forgotten_first() -> None:
    """However many callers come, the number of windows is bounded; one that is in use stays."""
    limits = rate_limits("2/day", ManualClock())
    admitted(limits, "first", 2)
    admitted(limits, "busy", 2)
    for number in range(50_000):
        admitted(limits, f"caller {number}")
        if number % 1000 == 0:
            assert admitted(limits, "busy") == 0
    assert admitted(limits, "first", 3) == 2
    assert admitted(limits, "busy", 3) == 0


def test_ten_thousand_addresses_cost_a_few_megabytes() -> None:
    """Who comes from many addresses cannot fill the memory."""
    limits = rate_limits("2/day")
    tracemalloc.start()
    try:
        for number in range(10_000):
            limits.admit_address(f"2001:db8:{number:x}::/64")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 20 << 20


def test_settings_of_slowapi_in_the_environment_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither another strategy nor another storage gets in by the library's own variables."""
    monkeypatch.setenv("RATELIMIT_STRATEGY", "fixed-window")
    monkeypatch.setenv("RATELIMIT_STORAGE_URL", "memory://")
    monkeypatch.setenv("RATELIMIT_ENABLED", "false")
    clock = ManualClock(119.0)
    limits = rate_limits("5/minute", clock)
    assert admitted(limits, "alice", 9) == 5
    clock.now = 121.0  # a fixed window would let in five more
    assert admitted(limits, "alice", 9) == 0


def _wait(limits: RateLimits, rows: int, *, keep: bool = False) -> int:
    """Seconds that a request for so many rows is told to wait; 0: it was let in."""
    try:
        grant = limits.admit("alice", "iris")
        limits.settle(grant, rows)
    except RateLimited as refused:
        assert refused.retry_after is not None  # noqa: PT017 -- it may also not be raised
        return refused.retry_after
    if not keep:
        limits.give_back(grant)
    return 0
