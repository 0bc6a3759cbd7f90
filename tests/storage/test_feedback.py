"""What turned out to be true: the newest statement stands, in whatever order and however often it comes."""

from collections.abc import Sequence
from datetime import timedelta
from threading import Barrier, Thread
from typing import Any
from uuid import UUID, uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from app.storage.database import Database
from app.storage.feedback import Outcome, Statement, newest, put
from app.storage.tables import FeedbackRow
from tests.support.logged import START, add_feedback, identifier

ONE = identifier(1)


def test_the_first_statement_is_recorded_and_its_repetition_changes_nothing(database: Database) -> None:
    """Not even its times, though it comes later."""
    assert _say(database, "no", arrives=0) == Outcome("recorded", 0)
    first = _known(database)
    assert _say(database, "no", arrives=5) == Outcome("unchanged", 0)
    assert _known(database) == first
    assert (first.truth, first.at, first.received_at, first.principal) == ("no", START, START, "tester")


def test_a_later_arrival_corrects(database: Database) -> None:
    """And is counted."""
    _say(database, "no", arrives=0)
    assert _say(database, "yes", arrives=5) == Outcome("corrected", 1)
    assert _say(database, "no", arrives=6) == Outcome("corrected", 2)
    assert _known(database).truth == "no"


def test_an_older_time_never_overwrites_a_newer_one(database: Database) -> None:
    """Whenever it arrives."""
    _say(database, "no", arrives=0, at=-10)
    assert _say(database, "yes", arrives=9, at=-20) == Outcome("superseded", 0)
    assert _say(database, "no", arrives=9, at=-20) == Outcome("unchanged", 0)
    assert _known(database).at == START - timedelta(seconds=10)
    assert _say(database, "yes", arrives=9, at=-5) == Outcome("corrected", 1)


def test_of_one_time_the_later_arrival_stands(database: Database) -> None:
    """The time is when it was true, and a correction of that may well have the same."""
    _say(database, "no", arrives=0, at=-10)
    assert _say(database, "yes", arrives=1, at=-10) == Outcome("corrected", 1)


def test_a_confirmation_moves_the_time_and_nothing_else(database: Database) -> None:
    """So that what was true in between does not come back."""
    _say(database, "no", arrives=0, at=-10)
    assert _say(database, "no", arrives=1, at=-5) == Outcome("unchanged", 0)
    known = _known(database)
    assert (known.at, known.received_at) == (START - timedelta(seconds=5), START)
    assert _say(database, "yes", arrives=2, at=-7) == Outcome("superseded", 0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_in_any_order_the_truth_of_the_latest_time_stands(database: Database, data: st.DataObject) -> None:
    """Statements with times of their own, any of them repeated, arrive as they like."""
    said = data.draw(st.lists(st.tuples(st.integers(-50, -1), st.booleans()), unique_by=lambda s: s[0], min_size=1))
    arriving = data.draw(st.permutations(said + data.draw(st.lists(st.sampled_from(said), max_size=3))))
    prediction_id = uuid4()
    for arrives, (at, truth) in enumerate(arriving):
        _say(database, truth, arrives=arrives, at=at, prediction_id=prediction_id)
    known = _known(database, prediction_id)
    latest = max(said)
    assert (known.truth, known.at) == (latest[1], START + timedelta(seconds=latest[0]))
    assert 0 <= known.revisions < len(said)


def test_many_are_put_at_once(database: Database) -> None:
    """More than a statement takes at a time; each has its outcome."""
    add_feedback(database, identifier(7), "no", at=START - timedelta(seconds=1))
    statements = {identifier(n): Statement(identifier(n), "no" if n % 2 else "yes") for n in range(3_000)}
    outcomes = _put(database, statements, 0)
    assert outcomes.pop(identifier(7)) == Outcome("unchanged", 0)
    assert set(outcomes.values()) == {Outcome("recorded", 0)}
    assert len(outcomes) == 2_999
    again = _put(database, {i: Statement(i, "yes") for i in statements}, 1)
    assert sum(outcome.status == "corrected" for outcome in again.values()) == 1_500


def test_two_at_once_count_every_correction(database: Database) -> None:
    """Nobody's statement is lost, and neither waits for the other for ever, though their orders differ."""
    identifiers = [identifier(n) for n in range(100)]
    begin = Barrier(2)
    failures: list[BaseException] = []

    def say(who: int, order: Sequence[UUID]) -> None:
        try:
            begin.wait()
            for turn in range(15):
                truth = f"{who}-{turn}"
                at = START + timedelta(seconds=2 * turn + who)
                _put(database, {i: Statement(i, truth, at) for i in order}, turn)
        except BaseException as error:  # noqa: BLE001 -- the test's own thread raises it again
            failures.append(error)

    threads = [Thread(target=say, args=(0, identifiers)), Thread(target=say, args=(1, identifiers[::-1]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    known = [_known(database, i) for i in identifiers]
    assert {row.truth for row in known} == {"1-14"}
    assert {row.at for row in known} == {START + timedelta(seconds=29)}
    assert all(14 <= row.revisions <= 29 for row in known)


def test_rows_are_taken_in_one_order_whatever_the_callers(database: Database) -> None:
    """Else two with the same predictions could each hold what the other waits for."""
    first, second = identifier(1), identifier(2)
    outcomes: dict[UUID, Outcome] = {}
    other = Thread(target=lambda: outcomes.update(_put(database, {i: Statement(i, "b") for i in (second, first)}, 1)))
    with database.writing() as connection:
        put(connection, {first: Statement(first, "a")}, principal="tester", now=START)
        other.start()
        other.join(0.3)  # it waits for the first, and has not touched the second
        put(connection, {second: Statement(second, "a")}, principal="tester", now=START)
    other.join()
    assert outcomes == dict.fromkeys((first, second), Outcome("corrected", 1))


def test_of_several_in_one_request_one_stands() -> None:
    """The latest time; without a time it is now; of the same, the last."""
    two = identifier(2)
    times = [START, START + timedelta(seconds=1), START + timedelta(seconds=1), START]
    said = [Statement(ONE, n, at) for n, at in enumerate(times)] + [Statement(two, 4), Statement(two, 5, START)]
    assert newest(said) == {ONE: 2, two: 4}


def _say(
    database: Database, truth: Any, *, arrives: float, at: float | None = None, prediction_id: UUID = ONE
) -> Outcome:
    when = None if at is None else START + timedelta(seconds=at)
    return _put(database, {prediction_id: Statement(prediction_id, truth, when)}, arrives)[prediction_id]


def _put(database: Database, statements: dict[UUID, Statement], arrives: float) -> dict[UUID, Outcome]:
    with database.writing() as connection:
        return put(connection, statements, principal="tester", now=START + timedelta(seconds=arrives))


def _known(database: Database, prediction_id: UUID = ONE) -> Any:
    with database.reading() as connection:
        return connection.execute(select(FeedbackRow.__table__).where(FeedbackRow.prediction_id == prediction_id)).one()
