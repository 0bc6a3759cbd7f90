"""Clients are registered, changed and refused; every change is on record, and no secret is."""

import hashlib
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from argon2 import PasswordHasher
from sqlalchemy import select

from app.auth.clients import Changes, Clients
from app.auth.directory import find_client
from app.errors import ClientExists, ClientNotFound, InvalidInput
from app.storage import clients as table
from app.storage.database import Database
from app.storage.tables import AuditRow

PASSWORD = "correct horse battery"  # noqa: S105 -- everybody's


@pytest.fixture
def clients(database: Database) -> Clients:
    """On an empty database, once on each of the two."""
    return Clients(database)


def _audit(database: Database) -> list[Any]:
    with database.reading() as connection:
        return list(connection.execute(select(AuditRow.__table__).order_by(AuditRow.id)))


def _generation(database: Database) -> int:
    with database.reading() as connection:
        return table.generation(connection.connection)


def _opens(database: Database, name: str, secret: str) -> bool:
    found = find_client(database, name)
    assert found is not None
    return PasswordHasher().verify(found[1], secret)


def test_a_client_gets_a_secret_and_the_least_that_is_useful(clients: Clients, database: Database) -> None:
    """The secret is returned, and only its hash is kept."""
    secret = clients.add("batch", by="root")
    assert len(secret) >= 43
    client = clients.get("batch")
    assert (client.kind, client.plan, client.disabled_at) == ("service", None, None)
    assert client.scopes == {"predict"}
    assert client.tokens_not_before is None
    assert _opens(database, "batch", secret)
    assert clients.add("other", by="root") != secret
    assert [one.name for one in clients.list()] == ["batch", "other"]


def test_a_user_may_choose_a_password(clients: Clients, database: Database) -> None:
    """What comes back is what was given."""
    assert clients.add("ann@example.com", by="root", kind="user", secret=PASSWORD) == PASSWORD
    assert _opens(database, "ann@example.com", PASSWORD)


def test_a_name_is_given_once(clients: Clients, database: Database) -> None:
    """Disabled or not; whoever has it keeps its secret."""
    secret = clients.add("batch", by="root")
    clients.disable("batch", by="root")
    with pytest.raises(ClientExists):
        clients.add("batch", by="root", scopes=["admin"])
    assert clients.get("batch").scopes == {"predict"}
    assert _opens(database, "batch", secret)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a" * 65}, "name"),
        ({"name": "-a"}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"name": "é"}, "name"),
        ({"name": "operator"}, "name"),
        ({"name": "anonymous"}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["predict", "everything"]}, "scopes"),
        ({"scopes": ["predict:Iris"]}, "scopes"),
        ({"scopes": ["admin "]}, "scopes"),
        ({"plan": "600"}, "plan"),
        ({"plan": "0/minute"}, "plan"),
        ({"plan": "600/minute;1/second"}, "plan"),
        ({"secret": PASSWORD}, "secret"),
        ({"secret": ""}, "secret"),
        ({"kind": "user", "secret": ""}, "secret"),
        ({"kind": "user", "secret": "elevenchars"}, "secret"),
        ({"kind": "user", "secret": "x" * 257}, "secret"),
    ],
)
def test_what_does_not_fit_is_named(clients: Clients, database: Database, values: dict[str, Any], field: str) -> None:
    """And not repeated; nothing is written."""
    with pytest.raises(InvalidInput) as refused:
        clients.add(**{"name": "batch", "by": "root", **values})
    assert [error.field for error in refused.value.errors] == [field]
    assert clients.list() == []
    assert _generation(database) == 0


def test_all_that_does_not_fit_is_named_at_once(clients: Clients) -> None:
    """Not one after the other."""
    with pytest.raises(InvalidInput) as refused:
        clients.add("a b", by="root", scopes=["x"], plan="y", secret="z")  # noqa: S106 -- refused
    assert [error.field for error in refused.value.errors] == ["name", "scopes", "plan", "secret"]


def test_scopes_and_plan_are_changed_each_by_itself(clients: Clients) -> None:
    """What is not named stays; None takes the plan away."""
    clients.add("batch", by="root", plan="600/minute")
    assert clients.change("batch", by="root", scopes=["read", "predict:iris"]).plan == "600/minute"
    assert clients.change("batch", by="root", plan="5/second").scopes == {"read", "predict:iris"}
    assert clients.change("batch", by="root", plan=None).plan is None
    assert clients.get("batch").scopes == {"read", "predict:iris"}
    wrong: list[Changes] = [{"scopes": []}, {"scopes": ["x"]}, {"plan": "x"}]
    for changes in wrong:
        with pytest.raises(InvalidInput):
            clients.change("batch", by="root", **changes)


def test_a_disabled_client_comes_back_without_its_old_tokens(clients: Clients) -> None:
    """Tokens say in whole seconds when they were issued: those of the same second are refused, too."""
    clients.add("batch", by="root")
    before = datetime.now(UTC)
    disabled = clients.disable("batch", by="root")
    after = datetime.now(UTC)
    assert disabled.disabled_at is not None
    assert before <= disabled.disabled_at <= after
    enabled = clients.enable("batch", by="root")
    assert (enabled.disabled_at, enabled.tokens_not_before) == (None, disabled.tokens_not_before)
    assert enabled.tokens_not_before is not None
    assert int(before.timestamp()) < enabled.tokens_not_before.timestamp() <= int(after.timestamp()) + 1
    assert clients.get("batch") == enabled


def test_another_secret_replaces_the_first(clients: Clients, database: Database) -> None:
    """Tokens stay valid, unless they are to go with it."""
    first = clients.add("batch", by="root")
    second = clients.rotate("batch", by="root")
    assert first != second
    assert _opens(database, "batch", second)
    assert clients.get("batch").tokens_not_before is None
    third = clients.rotate("batch", by="root", revoke_tokens=True)
    assert _opens(database, "batch", third)
    not_before = clients.get("batch").tokens_not_before
    assert not_before is not None
    assert not_before.microsecond == 0


def test_a_user_may_choose_another_password_and_a_service_may_not(clients: Clients, database: Database) -> None:
    """A refused one changes nothing."""
    clients.add("ann", by="root", kind="user", secret=PASSWORD)
    assert clients.rotate("ann", by="root", secret=PASSWORD + "!") == PASSWORD + "!"
    service = clients.add("batch", by="root")
    for name, secret in (("ann", "short"), ("batch", PASSWORD)):
        with pytest.raises(InvalidInput):
            clients.rotate(name, by="root", secret=secret)
    assert _opens(database, "ann", PASSWORD + "!")
    assert _opens(database, "batch", service)


def test_a_key_is_known_by_its_id_and_kept_as_a_hash(clients: Clients, database: Database) -> None:
    """The secret part may hold what the parts are divided by."""
    clients.add("batch", by="root")
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    made = [clients.add_key("batch", by="root", expires_at=expires, note="nightly") for _ in range(20)]
    assert len(set(made)) == 20
    kept = {key.id: key for key in clients.keys("batch")}
    for key in made:
        prefix, identifier, secret = key.split("_", 2)
        assert prefix == "presage"
        assert re.fullmatch("[a-z0-9]{12}", identifier)
        assert len(secret) == 43
        found = kept[identifier]
        assert found.hash == hashlib.sha256(key.encode()).hexdigest()
        assert (found.client, found.note, found.expires_at, found.revoked_at) == ("batch", "nightly", expires, None)
    with database.reading() as connection:
        assert len(table.api_keys(connection)) == 20


def test_a_key_is_revoked_once(clients: Clients, database: Database) -> None:
    """Again is no error, and changes nothing."""
    clients.add("batch", by="root")
    identifier = clients.add_key("batch", by="root").split("_")[1]
    clients.revoke_key(identifier, by="root")
    (key,) = clients.keys("batch")
    assert key.revoked_at is not None
    changes = _generation(database)
    clients.revoke_key(identifier, by="root")
    assert clients.keys("batch") == [key]
    assert _generation(database) == changes


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "expires_at"),
        ({"note": "two\nlines"}, "note"),
        ({"note": "nul\0"}, "note"),
        ({"note": "x" * 201}, "note"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(clients: Clients, values: dict[str, Any], field: str) -> None:
    """Before it is made."""
    clients.add("batch", by="root")
    with pytest.raises(InvalidInput) as refused:
        clients.add_key("batch", by="root", **values)
    assert [error.field for error in refused.value.errors] == [field]
    assert clients.keys("batch") == []


@pytest.mark.parametrize(
    "operation",
    [
        lambda c, name: c.get(name),
        lambda c, name: c.change(name, by="root", plan=None),
        lambda c, name: c.disable(name, by="root"),
        lambda c, name: c.enable(name, by="root"),
        lambda c, name: c.rotate(name, by="root"),
        lambda c, name: c.keys(name),
        lambda c, name: c.add_key(name, by="root"),
        lambda c, name: c.revoke_key(name, by="root"),
    ],
)
def test_what_is_not_there_is_not_found(
    clients: Clients, database: Database, operation: Callable[[Clients, str], object]
) -> None:
    """Whatever it is called, and without repeating it."""
    for name in ("nobody", "nobodys12345", "nul\0", "\ud800"):
        with pytest.raises(ClientNotFound) as refused:
            operation(clients, name)
        assert name not in refused.value.detail
    assert _generation(database) == 0


def test_a_token_is_revoked_until_it_expires(clients: Clients, database: Database) -> None:
    """A second time changes nothing, unless it is to last longer."""
    soon = datetime.now(UTC) + timedelta(hours=1)
    for expires in (soon, soon, soon - timedelta(minutes=1), soon + timedelta(minutes=1)):
        clients.revoke_token("jti-1", expires, by="root")
    with database.reading() as connection:
        assert table.revoked_tokens(connection) == {"jti-1"}
    assert _generation(database) == 2
    for wrong in ("", "x" * 256, "nul\0", "é", "a\n"):
        with pytest.raises(InvalidInput):
            clients.revoke_token(wrong, soon, by="root")


def test_every_change_is_counted_and_on_record_without_secrets(clients: Clients, database: Database) -> None:
    """Who, what, of whom, from what to what; and what changes nothing leaves nothing."""
    secrets = [clients.add("ann", by="root", kind="user", secret=PASSWORD, plan="1/day")]
    clients.change("ann", by="boss", scopes=["read"])
    clients.change("ann", by="boss", scopes=["read"], plan="1/day")
    secrets.append(clients.rotate("ann", by="root"))
    key = clients.add_key("ann", by="root", note="n")
    clients.revoke_key(key.split("_")[1], by="root")
    clients.disable("ann", by="root")
    clients.disable("ann", by="root")
    clients.enable("ann", by="root")
    clients.enable("ann", by="root")
    clients.revoke_token("jti-1", datetime.now(UTC), by="root")
    rows = _audit(database)
    actions = ["client.add", "client.change", "client.rotate", "key.add", "key.revoke"]
    actions += ["client.disable", "client.enable", "token.revoke"]
    assert [row.action for row in rows] == actions
    assert _generation(database) == len(actions)
    assert [row.principal for row in rows] == ["root", "boss", *["root"] * 6]
    assert [row.subject for row in rows] == ["ann"] * 3 + [key.split("_")[1]] * 2 + ["ann"] * 2 + ["jti-1"]
    added = {"kind": "user", "scopes": ["predict"], "plan": "1/day", "disabled_at": None, "tokens_not_before": None}
    assert (rows[0].before, rows[0].after) == (None, added)
    assert (rows[1].before, rows[1].after) == (added, {**added, "scopes": ["read"]})
    assert (rows[4].before["revoked_at"], rows[5].before["disabled_at"]) == (None, None)
    assert rows[5].after["disabled_at"] == rows[6].before["disabled_at"] is not None
    written = json.dumps([[row.before, row.after] for row in rows])
    for secret in (*secrets, key, key.split("_", 2)[2], hashlib.sha256(key.encode()).hexdigest(), "argon2"):
        assert secret not in written
