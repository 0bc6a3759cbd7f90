"""`/admin` over HTTP: a change bites at once, leaves a record with a name, and shows no secret twice."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import structlog
from pydantic import SecretStr
from sqlalchemy import select

from app.auth.directory import find_client
from app.auth.passwords import Passwords
from app.config import AuthSettings, ModelSettings, Settings, StorageSettings
from app.storage.migrations import upgrade
from app.storage.tables import AuditRow
from tests.support.asgi import UNLIMITED, Answer, InProcess, in_process
from tests.support.demo import MODULES
from tests.support.tokens import SECRET, token

_FORM = "application/x-www-form-urlencoded"
_names = count()


class Administration:
    """An application, an administrator called `root`, and the folder in which everything is kept."""

    def __init__(self, app: InProcess, folder: Path) -> None:
        self.app = app
        self.folder = folder
        self._token = token(sub="root", scope="admin").decode()

    def ask(self, method: str, path: str, json_body: Any = None, credential: str | None = None) -> Answer:
        """One request, of the administrator's unless it says otherwise."""
        headers = [("authorization", f"Bearer {credential or self._token}")]
        if json_body is not None:
            headers.append(("content-type", "application/json"))
        return self.app.request(method, f"/admin{path}", json_body=json_body, headers=headers)

    def do(self, method: str, path: str, json_body: Any = None) -> Any:
        """One that succeeds; its answer."""
        answer = self.ask(method, path, json_body)
        assert answer.status in (200, 201, 204), answer.body
        return answer.json() if answer.body else None

    def add(self, **values: Any) -> tuple[str, str]:
        """A client's name and secret."""
        made = self.do("POST", "/clients", {"name": f"client-{next(_names)}", **values})
        return made["name"], made["secret"]

    def find(self, name: str) -> Any:
        """As the list has it."""
        (found,) = [client for client in self.do("GET", "/clients")["clients"] if client["name"] == name]
        return found

    def log_in(self, name: str, secret: str) -> int:
        """The status of a token for a service."""
        body = urlencode({"grant_type": "client_credentials", "client_id": name, "client_secret": secret}).encode()
        return self.app.request("POST", "/auth/token", body=body, headers=[("content-type", _FORM)]).status

    def predict(self, credential: str | None = None, key: str | None = None) -> int:
        """The status of a prediction."""
        given = ("x-api-key", key) if key is not None else ("authorization", f"Bearer {credential}")
        headers = [given, ("content-type", "application/json")]
        return self.app.request("POST", "/predict", json_body={"text": "fine"}, headers=headers).status

    def audit(self, *subjects: str) -> list[Any]:
        """Who did what, oldest first."""
        columns = (AuditRow.principal, AuditRow.action, AuditRow.subject, AuditRow.before, AuditRow.after)
        with self.app.app.services.database.reading() as connection:
            rows = connection.execute(select(*columns).order_by(AuditRow.id)).all()
        return [row for row in rows if row.subject in subjects]


@pytest.fixture(scope="module")
def administration(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Administration]:
    """With a database of its own."""
    folder = tmp_path_factory.mktemp("admin")
    url = SecretStr(f"sqlite:///{folder}/presage.db")
    storage = StorageSettings(database_url=url, journal_dir=folder / "journal")
    upgrade(storage)
    auth = AuthSettings(jwt_secret=SecretStr(SECRET))
    models = ModelSettings(models_dir=models_dir, model_modules=(MODULES,))
    with in_process(Settings(auth=auth, limits=UNLIMITED, models=models, storage=storage)) as app:
        yield Administration(app, folder)


def _later(name: str, **changes: Any) -> str:
    """A token of a client's that is issued after what was done to it in this second."""
    return token(sub=name, iat=int(datetime.now(UTC).timestamp()) + 5, jti=f"of {name}", **changes).decode()


def _token(name: str, **changes: Any) -> str:
    return token(sub=name, jti=f"of {name}", **changes).decode()


def _fields(answer: Answer) -> set[str | None]:
    return {error.get("field") for error in answer.json()["errors"]}


def test_a_client_is_registered_and_listed(administration: Administration) -> None:
    """With what was said of it; its secret works at once, and is not in the list."""
    name, secret = administration.add(scopes=["predict:sentiment", "read"], plan="600/minute")
    found = administration.find(name)
    created = datetime.fromisoformat(found.pop("created_at"))
    assert abs(created - datetime.now(UTC)) < timedelta(minutes=1)
    assert found == {
        "name": name,
        "kind": "service",
        "scopes": ["predict:sentiment", "read"],
        "plan": "600/minute",
        "disabled_at": None,
    }
    assert administration.log_in(name, secret) == 200
    assert administration.find(administration.add()[0])["scopes"] == ["predict"]


def test_a_user_gets_a_password_that_is_made_here(administration: Administration) -> None:
    """None comes over the wire to be chosen."""
    name, secret = administration.add(kind="user")
    assert administration.find(name)["kind"] == "user"
    body = urlencode({"grant_type": "password", "username": name, "password": secret}).encode()
    assert administration.app.request("POST", "/auth/token", body=body, headers=[("content-type", _FORM)]).status == 200


def test_a_name_is_given_once(administration: Administration) -> None:
    """Whoever has it keeps its secret."""
    name, secret = administration.add()
    answer = administration.ask("POST", "/clients", {"name": name})
    assert (answer.status, answer.json()["code"]) == (409, "client_exists")
    assert administration.log_in(name, secret) == 200


def test_fewer_scopes_bite_at_once(administration: Administration) -> None:
    """A token that was just taken is no longer enough."""
    name, _ = administration.add(scopes=["predict", "read"])
    held = _token(name, scope="predict read")
    assert administration.predict(held) == 200
    changed = administration.do("PATCH", f"/clients/{name}", {"scopes": ["read"]})
    assert (changed["scopes"], administration.find(name)["scopes"]) == (["read"], ["read"])
    assert administration.predict(held) == 403
    administration.do("PATCH", f"/clients/{name}", {"scopes": ["predict"]})
    assert administration.predict(held) == 200


def test_a_plan_bites_at_once(administration: Administration) -> None:
    """Given, and taken away; scopes stay as they were."""
    name, _ = administration.add(scopes=["predict", "read"])
    held = _token(name)
    for plan in ("3/day", None):
        changed = administration.do("PATCH", f"/clients/{name}", {"plan": plan})
        assert (changed["plan"], changed["scopes"]) == (plan, ["predict", "read"])
        usage = administration.app.request("GET", "/v2/usage", headers=[("authorization", f"Bearer {held}")])
        assert usage.json()["plan"] == (plan or UNLIMITED.rate_limit)


def test_a_disabled_client_is_refused_at_once_and_may_come_back(administration: Administration) -> None:
    """With its token, its key and its secret; afterwards with all but the old token."""
    name, secret = administration.add()
    key = administration.do("POST", f"/clients/{name}/keys", {})["key"]
    held = _token(name)
    assert (administration.predict(held), administration.predict(key=key)) == (200, 200)
    assert administration.do("PATCH", f"/clients/{name}", {"disabled": True})["disabled_at"]
    assert (administration.predict(held), administration.predict(key=key)) == (401, 401)
    assert administration.log_in(name, secret) == 401
    assert administration.do("PATCH", f"/clients/{name}", {"disabled": False})["disabled_at"] is None
    assert (administration.predict(held), administration.predict(key=key)) == (401, 200)
    assert administration.predict(_later(name)) == 200
    assert administration.log_in(name, secret) == 200


def test_another_secret_bites_at_once(administration: Administration) -> None:
    """The one before opens nothing; tokens stay, unless they are revoked with it."""
    name, first = administration.add()
    held = _token(name)
    second = administration.do("POST", f"/clients/{name}/secret", {})["secret"]
    assert (administration.log_in(name, first), administration.log_in(name, second)) == (401, 200)
    assert administration.predict(held) == 200
    third = administration.do("POST", f"/clients/{name}/secret", {"revoke_tokens": True})["secret"]
    assert len({first, second, third}) == 3
    assert administration.predict(held) == 401
    assert administration.predict(_later(name)) == 200


def test_a_key_works_until_it_is_revoked(administration: Administration) -> None:
    """It is listed without itself; to revoke it again is no error."""
    name, _ = administration.add()
    expires = (datetime.now(UTC) + timedelta(days=90)).replace(microsecond=0)
    asked = {"note": "nightly run", "expires_at": expires.isoformat()}
    key = administration.do("POST", f"/clients/{name}/keys", asked)["key"]
    identifier = key.split("_")[1]
    assert administration.predict(key=key) == 200
    (listed,) = administration.do("GET", f"/clients/{name}/keys")["keys"]
    assert (listed["id"], listed["client"], listed["note"]) == (identifier, name, "nightly run")
    assert datetime.fromisoformat(listed["expires_at"]) == expires
    assert listed["revoked_at"] is None
    assert key not in json.dumps(listed)
    for _ in range(2):
        assert administration.ask("DELETE", f"/keys/{identifier}").status == 204
        assert administration.predict(key=key) == 401
    assert administration.do("GET", f"/clients/{name}/keys")["keys"][0]["revoked_at"]


@pytest.mark.parametrize("by", ["token", "jti"])
def test_a_revoked_token_is_refused_at_once(administration: Administration, by: str) -> None:
    """Shown, or named; others of the same caller stay."""
    jti = f"revoked by {by}"
    held, other = token(jti=jti).decode(), token(jti=f"not {jti}").decode()
    assert administration.predict(held) == 200
    assert administration.ask("POST", "/revocations", {by: held if by == "token" else jti}).status == 204
    assert (administration.predict(held), administration.predict(other)) == (401, 200)
    (row,) = administration.audit(jti)
    assert (row.principal, row.action, row.before) == ("root", "token.revoke", None)


def test_everything_is_on_record_with_a_name(administration: Administration) -> None:
    """Who did it, what it was before and after, in order; what changes nothing is no change."""
    name, _ = administration.add(scopes=["read"])
    administration.do("PATCH", f"/clients/{name}", {"plan": "5/day", "scopes": ["predict"]})
    administration.do("PATCH", f"/clients/{name}", {})
    administration.do("PATCH", f"/clients/{name}", {"disabled": True})
    administration.do("PATCH", f"/clients/{name}", {"disabled": True})
    administration.do("PATCH", f"/clients/{name}", {"disabled": False})
    administration.do("POST", f"/clients/{name}/secret", {})
    identifier = administration.do("POST", f"/clients/{name}/keys", {})["key"].split("_")[1]
    administration.do("DELETE", f"/keys/{identifier}")
    rows = administration.audit(name, identifier)
    assert {row.principal for row in rows} == {"root"}
    actions = [row.action for row in rows]
    changes = [action for action in actions if action == "client.change"]
    assert 1 <= len(changes) <= 2
    others = ["client.add", "client.disable", "client.enable", "client.rotate", "key.add", "key.revoke"]
    assert [action for action in actions if action != "client.change"] == others
    assert (rows[0].before, rows[0].after["scopes"]) == (None, ["read"])
    last = rows[len(changes)]
    assert (last.after["scopes"], last.after["plan"]) == (["predict"], "5/day")
    assert rows[len(changes) + 1].after["disabled_at"]


def test_another_administrator_has_another_name(administration: Administration) -> None:
    """It is taken from the credential, and nothing that is sent changes it."""
    administrator, secret = administration.add(scopes=["admin"])
    form = {"grant_type": "client_credentials", "client_id": administrator, "client_secret": secret, "scope": "admin"}
    body = urlencode(form).encode()
    answer = administration.app.request("POST", "/auth/token", body=body, headers=[("content-type", _FORM)])
    name = f"client-{next(_names)}"
    held = answer.json()["access_token"]
    assert administration.ask("POST", "/clients", {"name": name}, credential=held).status == 201
    assert [row.principal for row in administration.audit(name)] == [administrator]


def test_who_may_everything_else_may_not_administrate(administration: Administration) -> None:
    """And changes nothing by trying."""
    name, _ = administration.add()
    held = token(sub="nearly", scope="predict feedback read predict:admin").decode()
    for method, path in (
        ("GET", "/clients"),
        ("POST", "/clients"),
        ("PATCH", f"/clients/{name}"),
        ("POST", f"/clients/{name}/secret"),
        ("GET", f"/clients/{name}/keys"),
        ("POST", f"/clients/{name}/keys"),
        ("DELETE", "/keys/abcdefghijkl"),
        ("POST", "/revocations"),
    ):
        answer = administration.ask(method, path, None if method in {"GET", "DELETE"} else {}, credential=held)
        assert answer.status == 403, (method, path)
        assert 'error="insufficient_scope"' in (answer.header("www-authenticate") or "")
    assert len(administration.audit(name)) == 1


NOBODY = [
    ("PATCH", "/clients/nobody", {"plan": None}),
    ("PATCH", "/clients/nobody", {}),
    ("PATCH", "/clients/nobody%00", {"disabled": True}),
    ("POST", "/clients/nobody/secret", {}),
    ("GET", "/clients/nobody/keys", None),
    ("POST", "/clients/nobody/keys", {}),
    ("DELETE", "/keys/nobodys12345", None),
    ("DELETE", "/keys/nobody%00", None),
]


@pytest.mark.parametrize(("method", "path", "body"), NOBODY)
def test_who_does_not_exist_is_not_found(administration: Administration, method: str, path: str, body: Any) -> None:
    """A client or a key, whatever its name looks like."""
    answer = administration.ask(method, path.replace("%00", "\0"), body)
    assert (answer.status, answer.json()["code"]) == (404, "client_not_found")


WRONG = [
    ("POST", "/clients", {}, "name"),
    ("POST", "/clients", {"name": ""}, "name"),
    ("POST", "/clients", {"name": "bad name"}, "name"),
    ("POST", "/clients", {"name": "anonymous"}, "name"),
    ("POST", "/clients", {"name": 5}, "name"),
    ("POST", "/clients", {"name": "x", "kind": "root"}, "kind"),
    ("POST", "/clients", {"name": "x", "scopes": []}, "scopes"),
    ("POST", "/clients", {"name": "x", "scopes": ["root"]}, "scopes"),
    ("POST", "/clients", {"name": "x", "scopes": "predict"}, "scopes"),
    ("POST", "/clients", {"name": "x", "scopes": ["predict"] * 101}, "scopes"),
    ("POST", "/clients", {"name": "x", "plan": "many"}, "plan"),
    ("POST", "/clients", {"name": "x", "plan": "0/minute"}, "plan"),
    ("POST", "/clients", {"name": "x", "plan": 5}, "plan"),
    ("PATCH", "/clients/{name}", {"scopes": ["root"]}, "scopes"),
    ("PATCH", "/clients/{name}", {"scopes": []}, "scopes"),
    ("PATCH", "/clients/{name}", {"plan": ""}, "plan"),
    ("PATCH", "/clients/{name}", {"disabled": "yes"}, "disabled"),
    ("PATCH", "/clients/{name}", {"disabled": 1}, "disabled"),
    ("POST", "/clients/{name}/secret", {"revoke_tokens": "yes"}, "revoke_tokens"),
    ("POST", "/clients/{name}/keys", {"note": "x" * 201}, "note"),
    ("POST", "/clients/{name}/keys", {"note": "two\nlines"}, "note"),
    ("POST", "/clients/{name}/keys", {"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
    ("POST", "/clients/{name}/keys", {"expires_at": "2999-01-01T00:00:00"}, "expires_at"),
    ("POST", "/clients/{name}/keys", {"expires_at": "tomorrow"}, "expires_at"),
    ("POST", "/clients/{name}/keys", {"expires_at": 4102444800}, "expires_at"),
    ("POST", "/clients/{name}/keys", {"expires_at": "9999-12-31T23:59:59-23:00"}, "expires_at"),
    ("POST", "/clients/{name}/keys", {"expires_at": "0001-01-01T00:00:00+23:00"}, "expires_at"),
    ("POST", "/revocations", {}, "token"),
    ("POST", "/revocations", {"token": "a.b.c", "jti": "x"}, "token"),
    ("POST", "/revocations", {"token": "a.b.c"}, "token"),
    ("POST", "/revocations", {"token": "x" * 5000}, "token"),
    ("POST", "/revocations", {"token": token(exp=10**18).decode()}, "token"),
    ("POST", "/revocations", {"jti": ""}, "jti"),
    ("POST", "/revocations", {"jti": "é"}, "jti"),
    ("POST", "/revocations", {"jti": "x" * 256}, "jti"),
]


@pytest.mark.parametrize(("method", "path", "body", "field"), WRONG)
def test_what_does_not_fit_is_named(
    administration: Administration, method: str, path: str, body: Any, field: str
) -> None:
    """By its field, and without what was sent; nothing has changed."""
    name, _ = administration.add()
    answer = administration.ask(method, path.format(name=name), body)
    assert (answer.status, answer.json()["code"]) == (422, "invalid_input")
    assert _fields(answer) == {field}
    assert len(administration.audit(name)) == 1
    assert not administration.audit("x")


def test_a_change_is_made_whole_or_not_at_all(administration: Administration) -> None:
    """When one of its parts does not fit, the others are not made either."""
    name, _ = administration.add(scopes=["predict"])
    before = administration.find(name)
    answer = administration.ask("PATCH", f"/clients/{name}", {"scopes": ["read"], "plan": "many", "disabled": True})
    assert (answer.status, _fields(answer)) == (422, {"plan"})
    assert administration.find(name) == before
    assert len(administration.audit(name)) == 1


TOO_MUCH = [
    ("POST", "/clients", {"name": "new", "secret": "a secret of my own choosing"}),
    ("POST", "/clients", {"name": "new", "secret_hash": "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA"}),
    ("POST", "/clients", {"name": "new", "disabled_at": None}),
    ("POST", "/clients", {"name": "new", "role": "admin"}),
    ("POST", "/clients", {"name": "new", "by": "somebody-else"}),
    ("PATCH", "/clients/{name}", {"name": "another"}),
    ("PATCH", "/clients/{name}", {"kind": "user"}),
    ("PATCH", "/clients/{name}", {"scopes": ["admin"], "secret_hash": "x"}),
    ("PATCH", "/clients/{name}", {"tokens_not_before": None}),
    ("POST", "/clients/{name}/secret", {"secret": "a secret of my own choosing"}),
    ("POST", "/clients/{name}/keys", {"client": "another"}),
    ("POST", "/clients/{name}/keys", {"key": "presage_abcdefghijkl_mine"}),
    ("POST", "/revocations", {"jti": "spared", "expires_at": "2020-01-01T00:00:00Z"}),
]


@pytest.mark.parametrize(("method", "path", "body"), TOO_MUCH)
def test_nothing_is_set_that_is_not_offered(administration: Administration, method: str, path: str, body: Any) -> None:
    """A member that is not known refuses the whole; nothing has changed."""
    name, secret = administration.add()
    before = administration.find(name)
    answer = administration.ask(method, path.format(name=name), body)
    assert (answer.status, answer.json()["code"]) == (422, "invalid_input")
    assert [error["code"] for error in answer.json()["errors"]] == ["unknown_field"]
    assert administration.find(name) == before
    assert len(administration.audit(name)) == 1
    assert not administration.audit("new", "spared")
    assert administration.log_in(name, secret) == 200


def test_a_secret_is_shown_once_and_kept_as_its_hash(administration: Administration) -> None:
    """It is in no file that the service writes, no later answer and no line of the log."""
    with structlog.testing.capture_logs() as lines:
        name, first = administration.add()
        second = administration.do("POST", f"/clients/{name}/secret", {})["secret"]
        key = administration.do("POST", f"/clients/{name}/keys", {})["key"]
        assert administration.log_in(name, second) == 200
        assert administration.predict(key=key) == 200
    secrets = [first, second, key, key.split("_", 2)[2]]
    answers = [administration.ask("GET", path).body for path in ("/clients", f"/clients/{name}/keys")]
    kept = b"".join(file.read_bytes() for file in administration.folder.rglob("*") if file.is_file())
    assert name.encode() in kept
    for secret in secrets:
        assert secret.encode() not in kept
        assert secret not in repr(lines)
        assert all(secret.encode() not in body for body in answers)
    found = find_client(administration.app.app.services.database, name)
    assert found is not None
    with Passwords() as passwords:
        assert asyncio.run(passwords.verify(found[1], second))
