"""Ids are places in time: a window is a range of ids, whatever its edges."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.inference.identifiers import new_ids
from app.storage.ids import from_cursor, lowest_id, may_exist, milliseconds_of, new_id, to_cursor
from tests.support.logged import START, identifier

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIMES = st.datetimes(datetime(1970, 1, 1), datetime(9998, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 -- bounds


@given(TIMES, TIMES, st.integers(0, (1 << 62) - 1))
def test_an_id_is_in_the_range_exactly_when_its_millisecond_is_in_the_window(
    made: datetime, edge: datetime, noise: int
) -> None:
    """The millisecond's beginning counts, on both sides of every edge."""
    beginning = EPOCH + (made - EPOCH) // timedelta(milliseconds=1) * timedelta(milliseconds=1)
    milliseconds = (made - EPOCH) // timedelta(milliseconds=1)
    found = UUID(int=(milliseconds << 80) | (7 << 76) | (2 << 62) | noise)
    assert (found >= lowest_id(edge)) == (beginning >= edge)
    assert milliseconds_of(found) == milliseconds


@pytest.mark.parametrize("instant", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_the_ends_of_time_are_ids_too(instant: datetime) -> None:
    """Nothing overflows."""
    assert 0 <= lowest_id(instant).int < 1 << 128


def test_ids_of_predictions_and_our_own_are_of_now() -> None:
    """Both have version 7 and the present time."""
    now = datetime.now(UTC)
    for made in (UUID(new_ids(1)[0]), new_id()):
        assert (made.version, made.variant) == (7, UUID(int=0x8 << 60).variant)
        assert abs(milliseconds_of(made) - now.timestamp() * 1000) < 1_000
        assert may_exist(made, now)


def test_an_id_of_the_future_or_of_another_kind_was_never_given_out() -> None:
    """So nobody looks for it twice."""
    assert not may_exist(identifier(120_000), START)
    assert not may_exist(UUID(int=4 << 76), START)


@given(st.uuids())
def test_a_cursor_comes_back_as_the_id_that_it_stands_for(given_id: UUID) -> None:
    """Twenty-two letters that are safe in a URL."""
    cursor = to_cursor(given_id)
    assert from_cursor(cursor) == given_id
    assert len(cursor) == 22
    assert cursor.replace("-", "").replace("_", "").isalnum()


@given(st.text(max_size=30))
def test_what_is_no_cursor_is_refused(text: str) -> None:
    """With one kind of error, and whatever is accepted is a cursor letter for letter."""
    try:
        found = from_cursor(text)
    except ValueError:
        return
    assert to_cursor(found) == text
