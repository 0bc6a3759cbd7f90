"""The audit of models: an entry is one row however often it is recorded, and is read newest first."""

from datetime import timedelta

from app.storage import audit, queries
from app.storage.audit import Entry
from app.storage.database import Database
from tests.support.logged import START, identifier


def _entry(place: int, subject: str = "toy", action: str = "model.promote") -> Entry:
    at = START + timedelta(milliseconds=place)
    before, after = {"aliases": {"champion": place}}, {"aliases": {"champion": place + 1}, "reason": "é"}
    return Entry(identifier(place), at, "ann", action, subject, before, after)


def _record(database: Database, *entries: Entry) -> None:
    with database.writing() as connection:
        for entry in entries:
            audit.record(connection, entry)


def test_an_entry_that_is_recorded_again_is_one_row(database: Database) -> None:
    """As it was written, and whoever comes second is not told of an error."""
    entry = _entry(1)
    _record(database, entry, entry)
    _record(database, entry)
    with database.reading() as connection:
        assert audit.page(queries.on(connection)).entries == [entry]


def test_pages_follow_one_another(database: Database) -> None:
    """Newest first; an entry that is recorded late stands where it belongs."""
    entries = [_entry(place) for place in (1, 2, 4, 5, 3)]
    _record(database, *entries)
    with database.reading() as connection:
        run = queries.on(connection)
        first = audit.page(run, size=3)
        second = audit.page(run, size=3, after=first.after)
    assert [entry.id for entry in first.entries + second.entries] == [identifier(place) for place in (5, 4, 3, 2, 1)]
    assert second.after is None


def test_subjects_and_actions_are_looked_for(database: Database) -> None:
    """One subject, several actions."""
    others = (_entry(2, subject="other"), _entry(3, action="model.rollback"), _entry(4, action="client.add"))
    _record(database, _entry(1), *others)
    with database.reading() as connection:
        run = queries.on(connection)
        found = audit.page(run, subject="toy", actions=("model.promote", "model.rollback")).entries
    assert [entry.id for entry in found] == [identifier(3), identifier(1)]
