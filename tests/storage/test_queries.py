"""The log is read in pages and as a whole: nothing twice, nothing left out, whatever is added meanwhile."""

import random
from collections.abc import Iterator
from datetime import timedelta
from threading import Event, Thread
from typing import Any
from uuid import UUID

import pytest

from app.storage import queries
from app.storage.database import Database
from app.storage.queries import Filters, Run
from tests.support.logged import START, add, add_feedback, add_many, failed_row, identifier, row


@pytest.fixture
def run(database: Database) -> Run:
    """Each statement on a connection of its own, as an export does it."""

    def run(statement: Any) -> Any:
        with database.reading() as connection:
            return queries.on(connection)(statement)

    return run


def test_a_prediction_is_read_as_it_was_written(database: Database, run: Run) -> None:
    """Every column, times with their zone, what is missing as None."""
    whole, failed = row(1.5, request_id="r"), failed_row(2)
    add(database, whole, failed)
    found = queries.find(run, whole["id"])
    assert found == queries.LoggedPrediction(**whole, feedback=None)
    assert queries.find(run, failed["id"]) == queries.LoggedPrediction(**failed, feedback=None)
    assert queries.find(run, identifier(3)) is None


def test_a_prediction_comes_with_what_is_known_to_be_true(database: Database, run: Run) -> None:
    """Falsehoods are truths like any other."""
    for milliseconds, truth in enumerate(("no", False, 0, 0.5, "")):
        (identifier_,) = add(database, row(milliseconds))
        add_feedback(database, identifier_, truth, revisions=2, principal="ops")
        found = queries.find(run, identifier_)
        assert found is not None
        assert found.feedback == queries.Feedback(truth, START, START, "ops", 2)


def test_what_was_right_is_told_of_the_newest_predictions(database: Database, run: Run) -> None:
    """Of one version, where it is known, and of a bounded number."""
    most = queries.MOST_JUDGED
    add_many(database, most, first=1)
    old, failed, other = add(database, row(0), failed_row(most + 1), row(most + 2, version=2))
    for milliseconds, truth in ((1, "yes"), (2, "no"), (10, False)):
        add_feedback(database, identifier(milliseconds), truth)
    for identifier_ in (old, failed, other):
        add_feedback(database, identifier_, "yes")
    assert sorted(queries.judged(run, "toy", 1), key=str) == [("no", False), ("yes", "no"), ("yes", "yes")]
    assert queries.judged(run, "toy", 2) == [("yes", "yes")]
    assert queries.judged(run, "toy", 3) == []


@pytest.mark.parametrize("size", [1, 7, 500])
def test_pages_are_the_whole_newest_first(database: Database, run: Run, size: int) -> None:
    """Predictions of one millisecond included."""
    add(database, *(row(number // 5, number) for number in range(60)))
    pages = list(_pages(run, Filters(), size))
    assert [found.id for page in pages for found in page] == [identifier(n // 5, n) for n in reversed(range(60))]
    assert all(len(page) == size for page in pages[:-1])


def test_pages_neither_repeat_nor_skip_while_predictions_arrive(database: Database, run: Run) -> None:
    """What was there at the beginning comes once; what is added, at either end or in between, comes at most once."""
    there = set(add(database, *(row(n * 10) for n in range(300))))
    stop, added = Event(), 0

    def insert() -> None:
        nonlocal added
        places = random.Random(1)  # noqa: S311 -- the same places each time
        while not stop.is_set():
            added += 1
            add(database, row(places.randrange(4_000), added))

    thread = Thread(target=insert)
    thread.start()
    try:
        found = [prediction.id for page in _pages(run, Filters(), 20) for prediction in page]
    finally:
        stop.set()
        thread.join()
    assert added > 3
    assert len(set(found)) == len(found)
    assert there <= set(found)
    assert found == sorted(found, reverse=True)


def test_a_model_without_a_version_is_all_of_its_versions_in_order(database: Database, run: Run) -> None:
    """Although the index has the version first."""
    rows = [row(n, model="toy" if n % 3 else "other", version=n % 5 + 1) for n in range(100)]
    add(database, *rows)
    expected = [r["id"] for r in rows if r["model"] == "toy"]
    found = [prediction.id for page in _pages(run, Filters(model="toy"), 9) for prediction in page]
    assert found == expected[::-1]
    assert [prediction.id for prediction in queries.export(run, Filters(model="toy"), chunk=4)] == expected
    of_two = [r["id"] for r in rows if r["model"] == "toy" and r["version"] == 2]
    assert [prediction.id for prediction in queries.export(run, Filters(model="toy", version=2))] == of_two
    assert queries.models(run) == ["other", "toy"]
    assert queries.versions(run, "toy") == [1, 2, 3, 4, 5]


def test_a_window_has_its_beginning_and_not_its_end(database: Database, run: Run) -> None:
    """To the millisecond; a finer edge is the next one."""
    add(database, *(row(n, 1) for n in range(10)))
    for begin, end, expected in ((2, 5, [2, 3, 4]), (2.5, 5, [3, 4]), (2, 4.001, [2, 3, 4]), (5, 5, []), (6, 2, [])):
        window = Filters(START + timedelta(milliseconds=begin), START + timedelta(milliseconds=end))
        assert [found.id for found in queries.export(run, window)] == [identifier(n, 1) for n in expected]
        newest_first = [found.id for page in _pages(run, window, 2) for found in page]
        assert newest_first == [identifier(n, 1) for n in reversed(expected)]


def test_labels_and_failures_are_filters(database: Database, run: Run) -> None:
    """Alone, together, and with the rest."""
    add(database, *(failed_row(n) if n % 7 == 0 else row(n, label="no" if n % 2 else "yes") for n in range(50)))

    def count(**filters: Any) -> int:
        return len(list(queries.export(run, Filters(**filters))))

    assert count(failed=True) == 8
    assert count(failed=False) == 42
    assert count(label="no") == count(label="no", failed=False) == 21
    assert count(version=1) == count(version=1, model="toy") == 50
    assert count(version=2) == 0
    assert count(label="never") == count(label="no", failed=True) == 0
    assert count(model="toy", version=1, label="yes", until=START + timedelta(milliseconds=10)) == 4


def test_a_rare_label_is_looked_for_in_bounded_steps(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page looks at so many rows and no more; it may be empty and still say where to go on."""
    monkeypatch.setattr(queries, "MOST_EXAMINED", 100)
    add_many(database, 1_000)
    add(database, row(5, 5, label="rare"), row(555, 5, label="rare", version=2))
    for filters in (Filters(label="rare"), Filters(label="rare", model="toy")):
        pages = list(_pages(run, filters, 10))
        assert [found.id for page in pages for found in page] == [identifier(555, 5), identifier(5, 5)]
        assert 10 <= len(pages) <= 12
        assert [found.id for found in queries.export(run, filters)] == [identifier(5, 5), identifier(555, 5)]


def test_an_export_is_everything_oldest_first(database: Database, run: Run) -> None:
    """Across the borders of its steps, whether a step ends with them or not."""
    add_many(database, 1_000)
    for chunk in (1, 100, 999, 1_000, 1_001):
        if chunk > 1:
            found = [prediction.inputs["x"] for prediction in queries.export(run, Filters(), chunk=chunk)]
            assert found == list(range(1_000))
    assert [p.inputs["x"] for p in queries.export(run, Filters(label="no"), chunk=7)] == list(range(0, 1_000, 10))


def test_the_span_is_from_the_first_to_the_last(database: Database, run: Run) -> None:
    """Of the window, model and version."""
    assert queries.span(run, Filters()) is None
    add(database, *(row(n, version=n % 2 + 1) for n in range(10)))
    assert queries.span(run, Filters()) == (identifier(0), identifier(9))
    assert queries.span(run, Filters(model="toy", version=1)) == (identifier(0), identifier(8))
    assert queries.span(run, Filters(model="toy", since=START + timedelta(milliseconds=3))) == (
        identifier(3),
        identifier(9),
    )
    assert queries.span(run, Filters(model="none")) is None


def _pages(run: Run, filters: Filters, size: int) -> Iterator[list[queries.LoggedPrediction]]:
    """One page after the other, as a caller would ask for them."""
    after: UUID | None = None
    while True:
        page = queries.page(run, filters, after=after, size=size)
        yield page.predictions
        after = page.after
        if after is None:
            return
