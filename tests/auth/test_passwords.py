"""Secrets are verified a few at a time, beside the event loop, and how long it takes tells nothing."""

import asyncio
import statistics
import threading
import time
from collections.abc import Iterator

import pytest

from app.auth.passwords import AT_ONCE, MOST_WAITING, Passwords, hash_secret
from app.errors import Overloaded

SECRET = "correct horse battery staple"  # noqa: S105 -- everybody's


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    """Open."""
    with Passwords() as opened:
        yield opened


def test_a_hash_is_argon2id_of_the_parameters_that_we_mean() -> None:
    """With a salt of its own."""
    first, second = hash_secret(SECRET), hash_secret(SECRET)
    assert first.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert first != second
    assert SECRET not in first


@pytest.mark.parametrize(
    ("hashed", "given", "expected"),
    [
        (SECRET, SECRET, True),
        (SECRET, SECRET + " ", False),
        (SECRET, "", False),
        ("caf\u00e9 au lait!", "cafe\u0301 au lait!", True),
        (SECRET, "\ud800", False),
        (SECRET, "nul\0", False),
    ],
)
def test_only_the_secret_that_was_hashed_is_right(
    passwords: Passwords, hashed: str, given: str, *, expected: bool
) -> None:
    """However its letters with accents are composed, and whatever callers send."""
    assert asyncio.run(passwords.verify(hash_secret(hashed), given)) is expected


@pytest.mark.parametrize("secret_hash", [None, "", "no hash at all", "$argon2id$v=19$m=19456,t=2,p=1$x$y"])
def test_nothing_is_right_where_there_is_no_hash(passwords: Passwords, secret_hash: str | None) -> None:
    """Nor where what is kept is none of ours."""
    assert asyncio.run(passwords.verify(secret_hash, SECRET)) is False


def test_unknown_and_wrong_take_the_same_time(passwords: Passwords) -> None:
    """So that nobody learns which names there are."""
    known = hash_secret(SECRET)
    seconds: dict[str | None, list[float]] = {known: [], None: []}

    async def measure() -> None:
        for _ in range(60):
            for secret_hash, measured in seconds.items():
                started = time.perf_counter()
                assert not await passwords.verify(secret_hash, "something else")
                measured.append(time.perf_counter() - started)

    asyncio.run(measure())
    wrong, unknown = statistics.median(seconds[known]), statistics.median(seconds[None])
    assert 0.7 < wrong / unknown < 1.4


def test_a_flood_is_refused_and_does_not_hold_the_loop(passwords: Passwords) -> None:
    """Two are computed at once, as many as may wait do, and the rest is told to come back."""
    known = hash_secret(SECRET)
    lags: list[float] = []
    threads: list[int] = []

    async def watch() -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            lags.append(time.perf_counter() - started - 0.001)
            threads.append(threading.active_count())

    async def flood() -> tuple[float, list[bool | BaseException]]:
        started = time.perf_counter()
        await passwords.verify(known, SECRET)
        alone = time.perf_counter() - started
        before = threading.active_count()
        watcher = asyncio.create_task(watch())
        logins = (passwords.verify(known, SECRET) for _ in range(100))
        outcomes = await asyncio.gather(*logins, return_exceptions=True)
        watcher.cancel()
        assert max(threads) < before + AT_ONCE
        return alone, outcomes

    alone, outcomes = asyncio.run(flood())
    answered = [outcome for outcome in outcomes if outcome is True]
    refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
    assert len(answered) + len(refused) == 100
    # One or two more, where a place was free again before the last had asked.
    assert AT_ONCE + MOST_WAITING <= len(answered) <= AT_ONCE + MOST_WAITING + AT_ONCE
    assert {error.retry_after for error in refused} == {1}
    assert len(lags) > 10
    assert statistics.median(lags) < alone / 4


def test_a_place_is_free_again_when_its_caller_has_gone(passwords: Passwords) -> None:
    """Not sooner than its thread is, and not later."""
    known = hash_secret(SECRET)

    async def run() -> None:
        for _ in range(3):
            leaving = [asyncio.create_task(passwords.verify(known, SECRET)) for _ in range(AT_ONCE + MOST_WAITING)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await passwords.verify(known, SECRET)
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            assert await _soon(passwords, known)

    asyncio.run(run())


def test_closing_waits_for_nobody() -> None:
    """Those that wait are not begun."""

    async def run() -> float:
        with Passwords() as passwords:
            waiting = [asyncio.create_task(passwords.verify(None, SECRET)) for _ in range(AT_ONCE + MOST_WAITING)]
            await asyncio.sleep(0)
            started = time.perf_counter()
        ended = time.perf_counter() - started
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes) >= MOST_WAITING - AT_ONCE
        return ended

    started = time.perf_counter()
    hash_secret(SECRET)
    alone = time.perf_counter() - started
    assert asyncio.run(run()) < alone * MOST_WAITING / AT_ONCE


async def _soon(passwords: Passwords, secret_hash: str) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            return await passwords.verify(secret_hash, SECRET)
        except Overloaded:
            await asyncio.sleep(0.005)
    return False
