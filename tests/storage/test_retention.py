"""What must not be kept is deleted, in steps, with its feedback; and nothing else is."""

from datetime import timedelta
from threading import Thread
from uuid import UUID

from sqlalchemy import func, select

from app.storage import queries
from app.storage.database import Database
from app.storage.feedback import Statement, put
from app.storage.retention import BATCH, Deleted, Erased, erase_subject, expire
from app.storage.tables import AuditRow, FeedbackRow, PredictionRow
from tests.support.logged import START, add, add_feedback, add_many, identifier, row

DAY = 86_400_000
NOW = START + timedelta(days=100)


def test_each_model_forgets_at_its_own_age(database: Database) -> None:
    """To the millisecond, all versions, feedback included; 0 is never."""
    days = {"brief": 10, "long": 60, "ever": 0}
    for number, model in enumerate(days):
        add(database, *(row(day * DAY, number, model=model, version=day % 3 + 1) for day in range(100)))
    add_feedback(database, identifier(5 * DAY))
    add_feedback(database, identifier(99 * DAY))
    deleted = list(expire(database, days.__getitem__, now=NOW))
    assert {(step.model, step.feedback) for step in deleted} == {("brief", 1), ("brief", 0), ("long", 0)}
    left = {model: _ids(database, model) for model in days}
    assert [len(found) for found in left.values()] == [10, 60, 100]
    assert min(left["brief"]) == identifier(90 * DAY)
    assert _count(database, FeedbackRow) == 1
    assert not list(expire(database, days.__getitem__, now=NOW))


def test_it_goes_on_in_steps_and_may_be_left_between_them(database: Database) -> None:
    """What a step deleted stays deleted."""
    add_many(database, 1_000)
    steps = expire(database, lambda _: 1, now=NOW, batch=300)
    assert next(steps) == Deleted("toy", 300, 0)
    steps.close()
    assert _count(database, PredictionRow) == 700
    assert [step.predictions for step in expire(database, lambda _: 1, now=NOW, batch=300)] == [300, 300, 100]


def test_many_are_forgotten_quickly(database: Database) -> None:
    """With the size of a step that the service uses."""
    add_many(database, 12_000)
    assert [step.predictions for step in expire(database, lambda _: 1, now=NOW)] == [BATCH, BATCH, 2_000]


def test_feedback_that_comes_meanwhile_never_outlives_its_prediction(database: Database) -> None:
    """A prediction that receives feedback is held; it is forgotten with it, by this run or the next."""
    (held,) = add(database, row(0))
    runs: list[Deleted] = []
    with database.writing() as connection:
        assert held in queries.targets(queries.on(connection), [held])
        thread = Thread(target=lambda: runs.extend(expire(database, lambda _: 1, now=NOW)))
        thread.start()
        thread.join(0.3 if database.dialect == "sqlite" else 10)
        assert thread.is_alive() == (database.dialect == "sqlite")  # it has one writer at a time; nobody else waits
        put(connection, {held: Statement(held, "no")}, principal="tester", now=NOW)
    thread.join()
    runs += expire(database, lambda _: 1, now=NOW)
    assert runs == [Deleted("toy", 1, 1)]
    assert _count(database, FeedbackRow) == 0


def test_a_callers_predictions_and_feedback_are_erased_and_that_is_on_record(database: Database) -> None:
    """Others' are untouched; the audit says who, whom and how many, and not what."""
    rows = [row(n, principal="alice" if n % 3 == 0 else "bob") for n in range(100)]
    identifiers = add(database, *rows)
    add_feedback(database, identifiers[0], principal="bob")  # on a prediction of hers
    add_feedback(database, identifiers[1], principal="alice")  # on one of his
    add_feedback(database, identifiers[2], principal="bob")
    assert erase_subject(database, "alice", by="operator", now=NOW, batch=7) == Erased(34, 2)
    with database.reading() as connection:
        left = set(connection.scalars(select(PredictionRow.principal)))
        known = set(connection.scalars(select(FeedbackRow.prediction_id)))
        (audit,) = connection.execute(select(AuditRow.__table__)).all()
    assert left == {"bob"}
    assert known == {identifiers[2]}
    assert (audit.action, audit.principal, audit.subject, audit.at) == ("log.erase", "operator", "alice", NOW)
    assert (audit.before, audit.after) == ({"predictions": 34, "feedback": 2}, {"predictions": 0, "feedback": 0})
    assert erase_subject(database, "nobody", by="operator") == Erased(0, 0)


def _ids(database: Database, model: str) -> list[UUID]:
    with database.reading() as connection:
        return list(connection.scalars(select(PredictionRow.id).where(PredictionRow.model == model)))


def _count(database: Database, table: type[PredictionRow | FeedbackRow]) -> int:
    with database.reading() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0
