"""The processes of one service and one plan, without Redis: what they have used is in memory that all of them see."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from app.limits.columns import Columns
from app.limits.limiter import RateLimits, Usage
from app.limits.store import LocalStorage
from app.limits.windows import Window
from tests.support.columns import shared_regions, worker_limits
from tests.support.limits import ManualClock, admitted
from tests.support.sliding_window import TICKS, Reference

_ROOT = Path(__file__).parents[2]
# Regions for sixteen and for eight entries, so that everything is in the way of everything; of these six may be taken.
_SMALL = 8 * (12 + 4 * 16)
_TINY = 8 * (12 + 4 * 8)
_MOST_IN_TINY = 6
_NOWHERE = 8
_KEYS = {
    f"{key} of {limit}/{seconds}": (limit, seconds)
    for key, limit, seconds in [("a", 5, 1), ("b", 12, 60), ("c", 3, 60), ("d", 12, 3600), ("e", 7, 86_400)]
}

steps = st.one_of(
    st.tuples(st.just("wait"), st.integers(0, 90 * TICKS), st.just("")),
    st.tuples(st.just("wait"), st.integers(0, 3 * TICKS), st.just("")),
    st.tuples(st.just("ask"), st.integers(1, 12), st.sampled_from(sorted(_KEYS))),
    st.tuples(st.just("give_back"), st.integers(0, 30), st.just("")),
    st.tuples(st.just("crash"), st.just(0), st.just("")),
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.lists(st.tuples(st.integers(0, 3), steps), max_size=60))
def test_processes_decide_as_one_would_that_sees_everything(
    processes: int, kept: int, story: list[tuple[int, tuple[str, int, str]]]
) -> None:
    """Through crashes, windows that are let go, rows given back, and a table in which every key is in another's way."""
    clock = ManualClock()
    regions = shared_regions(processes, _SMALL)
    stores = [LocalStorage(clock=clock, most=kept, columns=Columns(regions, mine)) for mine in range(processes)]
    references = {key: Reference(*rate) for key, rate in _KEYS.items()}
    taken: list[tuple[LocalStorage, Window, float, int, Reference, int]] = []
    ticks = 0
    for who, (verb, number, key) in story:
        mine = who % processes
        if verb == "wait":
            ticks += number
            clock.now = ticks / TICKS
        elif verb == "crash":
            taken = [grant for grant in taken if grant[0] is not stores[mine]]
            stores[mine] = LocalStorage(clock=clock, most=kept, columns=Columns(regions, mine))
        elif verb == "give_back" and taken:
            store, window, of_number, rows, reference, event = taken.pop(number % len(taken))
            store.give_back(window, of_number, rows)
            reference.give_back(event)
        elif verb == "ask":
            limit, seconds = _KEYS[key]
            asked = references[key].ask(ticks, number)
            assert stores[mine].acquire_sliding_window_entry(key, limit, seconds, number) == (asked is not None)
            window = stores[mine].windows[key]
            assert window.remaining(stores[mine].elapsed(window)) == references[key].remaining(ticks)
            if asked is not None:
                taken.append((stores[mine], window, window.number, number, references[key], asked))


digests = st.sampled_from([2, 10, 18, 3, 11, 9, 17, 8, 16, (1 << 64) - 1])


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(digests, st.integers(0, 12)), max_size=80))
def test_a_column_holds_what_a_dict_would(story: list[tuple[int, int]]) -> None:
    """Whatever still counts is found, where it always was; what is past makes room; nothing else is refused."""
    columns = Columns(shared_regions(1, _TINY), 0)
    own = columns._own
    model: dict[int, tuple[int, int, int]] = {}  # digest → place, seconds, number
    now = 0
    for digest, pause in story:
        seconds = 1 + 9 * (digest % 2)  # the same whenever it comes, as a key has one rate
        now += pause
        model = {known: entry for known, entry in model.items() if now // entry[1] - entry[2] < 2}
        place = columns.give(digest, seconds, now)
        if place == _NOWHERE:
            assert digest not in model
            assert own[1] == _MOST_IN_TINY
        else:
            own[place + 1] = (now // seconds) << 40 | 1
            model[digest] = (place, seconds, now // seconds)
        for known, entry in model.items():
            assert columns.find(own, known) == entry[0]
        assert own[1] == sum(own[place] != 0 for place in range(12, len(own), 4)) <= _MOST_IN_TINY


def test_processes_have_a_plan_together() -> None:
    """What one has used is used for all, at once, and what one gives back is there for all."""
    first, second, third = _service("10/day", 3)
    grant = first.admit("alice", "iris")
    first.settle(grant, 6)
    assert admitted(second, "alice", 9) == 4
    assert admitted(third, "alice", 9) == admitted(first, "alice", 9) == 0
    first.give_back(grant)
    assert admitted(third, "alice", 9) == 6


@pytest.mark.parametrize(("processes", "count", "rows"), [(2, 1000, 1), (4, 3, 1), (4, 1000, 1), (3, 1000, 7)])
def test_processes_that_ask_at_once_let_in_one_request_each_too_much_at_most(
    processes: int, count: int, rows: int
) -> None:
    """Real processes, twenty plans, all used up in a race: no row is lost."""
    totals = _run("hammer", processes, count, rows)
    assert len(totals) == 20
    # A batch can be refused for the one row that another holds until it is refused, too.
    least = count if rows == 1 else count - 2 * rows
    assert all(least <= total <= count + (processes - 1) * rows for total in totals)


def test_a_process_that_is_killed_gives_nobody_a_plan_anew() -> None:
    """One after the other, in the middle of it: only what one had let in and not yet counted is missing here."""
    total, kills = _run("crash", 3, 20_000)
    assert kills >= 3
    assert 20_000 - kills <= total <= 20_000 + 2


def test_who_takes_over_a_column_goes_on_with_its_counts() -> None:
    """Also over the end of the window, and where nobody else is left."""
    clock = ManualClock(30.0)
    regions = shared_regions(2)
    assert admitted(worker_limits("10/minute", regions, 0, clock), "alice", 8) == 8
    clock.now = 70.0
    assert admitted(worker_limits("10/minute", regions, 0, clock), "alice", 1) == 1
    clock.now = 90.0  # four of eight count, and the one
    successor = worker_limits("10/minute", regions, 0, clock)
    assert successor.usage("alice", None, ["iris"]) == [Usage("iris", 10, 60, used=5, remaining=5, reset_seconds=90)]
    assert admitted(successor, "alice", 9) == 5


def test_what_was_used_before_slides_out_for_all() -> None:
    """A window that has ended counts by its rest in all processes, whether or not its own has come to the next."""
    clock = ManualClock(0.0)
    first, second = _service("10/minute", 2, clock)
    assert admitted(first, "alice", 6) == 6
    clock.now = 60.0 + 30.0
    assert admitted(first, "alice", 1) == 1
    assert admitted(second, "alice", 9) == 6
    assert admitted(first, "alice", 9) == 0
    clock.now = 120.0 + 30.0
    assert admitted(first, "alice", 9) == 6
    clock.now = 180.0 + 59.0
    assert admitted(second, "alice", 20) == 9
    clock.now = 400.0
    assert admitted(first, "alice", 4) + admitted(second, "alice", 20) == 10


def test_rows_are_given_back_after_the_window_has_ended() -> None:
    """They were used in the window before, and that is where the others find them missing."""
    clock = ManualClock(0.0)
    first, second = _service("10/minute", 2, clock)
    grant = first.admit("alice", "iris")
    first.settle(grant, 10)
    clock.now = 60.0
    assert admitted(second, "alice") == 0
    first.give_back(grant)
    assert admitted(second, "alice", 20) == 10


def test_a_window_that_a_process_has_let_go_still_counts() -> None:
    """For others and for itself; what is given back late is given back to the window that is there now."""
    first, second = _service("10/day", 2)
    first._store._most = 3
    grant = first.admit("alice", "iris")
    first.settle(grant, 6)
    for number in range(5):
        admitted(first, f"caller {number}")
    assert admitted(second, "alice", 2) == 2
    assert admitted(first, "alice", 1) == 1
    first.give_back(grant)
    assert admitted(first, "alice", 20) == 7


def test_a_column_that_is_full_shares_no_more_keys_and_says_so_once() -> None:
    """Who finds no room is limited all the same: by what their process sees."""
    regions = shared_regions(2, _TINY)
    first, second = (worker_limits("5/day", regions, mine) for mine in range(2))
    with structlog.testing.capture_logs() as lines:
        for number in range(8):
            assert admitted(first, f"caller {number}", 9) == 5
    assert lines == [{"event": "limits_column_full", "windows": _MOST_IN_TINY, "log_level": "warning"}]
    assert [admitted(second, f"caller {number}", 9) for number in range(8)] == [0] * 6 + [5] * 2
    assert [admitted(first, f"caller {number}", 9) for number in range(8)] == [0] * 8


def test_a_full_column_has_room_again_when_windows_are_past() -> None:
    """What no longer counts is freed while others come."""
    clock = ManualClock()
    regions = shared_regions(2, _SMALL)
    first, second = (worker_limits("5/minute", regions, mine, clock) for mine in range(2))
    for minute in range(0, 1000, 2):
        clock.now = 60.0 * minute
        for number in range(4):
            assert admitted(first, f"caller {minute} {number}", 3) == 3
            assert admitted(second, f"caller {minute} {number}", 9) == 2


def test_an_entry_that_was_given_to_another_key_is_looked_for_anew() -> None:
    """By the process whose it was, and by the others, who have remembered where it stood."""
    clock = ManualClock()
    regions = shared_regions(2, _TINY)
    first, second = (worker_limits("10/minute", regions, mine, clock) for mine in range(2))
    assert admitted(first, "alice") == admitted(second, "alice") == 1
    for minute in range(2, 40, 2):
        clock.now = 60.0 * minute
        for number in range(2):
            assert admitted(first, f"caller {minute} {number}", 3) == 3
    assert admitted(first, "alice", 6) == 6
    assert admitted(second, "alice", 20) == 4
    assert admitted(second, "caller 38 0", 20) == admitted(second, "caller 38 1", 20) == 7


def test_a_process_that_reads_the_clock_a_moment_before_the_others_sees_the_window_that_they_have_left() -> None:
    """As one does that was interrupted between the two."""
    regions, late, early = shared_regions(2), ManualClock(0.0), ManualClock(59.999)
    first = worker_limits("10/minute", regions, 0, late)
    assert admitted(first, "alice", 6) == 6
    late.now = 60.0
    assert admitted(first, "alice", 1) == 1
    assert admitted(worker_limits("10/minute", regions, 1, early), "alice", 9) == 4


def test_what_was_heard_of_processes_without_a_column_slides_out_too() -> None:
    """It counts for as long as its window does, and not longer."""
    clock = ManualClock()
    store = LocalStorage(clock=clock, columns=Columns(shared_regions(1), 0))
    assert store.acquire_sliding_window_entry("key", 10, 60, 1)
    window = store.windows["key"]
    window.shared(math.inf, 4, 4, 0, 0.0)
    store.complete(window)
    assert store.acquire_sliding_window_entry("key", 10, 60, 5)
    assert not store.acquire_sliding_window_entry("key", 10, 60, 1)
    clock.now = 90.0
    assert store.acquire_sliding_window_entry("key", 10, 60, 5)
    assert not store.acquire_sliding_window_entry("key", 10, 60, 1)
    clock.now = 179.0
    assert store.acquire_sliding_window_entry("key", 10, 60, 9)


def test_usage_shows_what_all_processes_have_used() -> None:
    """Of things, too, that only another process was asked for; whoever has used nothing of one does not see it."""
    first, second = _service("10/day", 2)
    first.settle(first.admit("alice", "wine"), 4)
    first.admit("alice", "iris")
    second.admit("alice", "iris")
    names = ["iris", "spam", "wine"]
    for limits in (first, second):
        assert [(each.name, each.used) for each in limits.usage("alice", None, names)] == [("iris", 2), ("wine", 4)]
    assert first.usage("bob", None, names) == []


def _service(rate: str, processes: int, clock: Callable[[], float] = time.monotonic) -> list[RateLimits]:
    """The limits of its processes; there are columns for twice as many, as while one generation replaces another."""
    regions = shared_regions(2 * processes)
    return [worker_limits(rate, regions, mine, clock) for mine in range(processes)]


def _run(*arguments: str | int) -> list[int]:
    """What a program prints that forks processes, which a test with threads must not."""
    command = [sys.executable, "-m", "tests.support.columns", *map(str, arguments)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    totals: list[int] = json.loads(done.stdout)
    return totals
