"""`clients`: what the person at the terminal types and sees; a secret is alone on standard output."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr
from sqlalchemy import select

from app.auth.directory import find_client
from app.auth.keys import Key
from app.auth.passwords import Passwords
from app.auth.tokens import issue
from app.cli.clients import clients
from app.config import StorageSettings
from app.errors import OperatorError
from app.storage.database import Database
from app.storage.migrations import upgrade
from app.storage.tables import AuditRow, RevokedTokenRow
from tests.support.server import ROOT, clean_environment, free_port

PASSWORD = "correct horse battery"  # noqa: S105 -- everybody's


@pytest.fixture(scope="module")
def _template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("template") / "presage.db"
    upgrade(StorageSettings(database_url=SecretStr(f"sqlite:///{file}")))
    return file.read_bytes()


@pytest.fixture
def url(tmp_path: Path, _template: bytes) -> str:
    """The address of a migrated database."""
    (tmp_path / "presage.db").write_bytes(_template)
    return f"sqlite:///{tmp_path}/presage.db"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """The same, open."""
    with Database(StorageSettings(database_url=SecretStr(url))) as opened:
        yield opened


def _invoke(url: str, *arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(clients, arguments, env={"DATABASE_URL": url}, input=given)


def _run(url: str, *arguments: str, given: str | None = None) -> Result:
    result = _invoke(url, *arguments, given=given)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def _listed(url: str, *arguments: str) -> Any:
    return json.loads(_run(url, *arguments, "--format", "json").stdout)


def _refused(url: str, *arguments: str) -> str:
    result = _invoke(url, *arguments)
    assert isinstance(result.exception, OperatorError)
    assert result.stdout == ""
    return str(result.exception)


def _opens(database: Database, name: str, secret: str) -> bool:
    found = find_client(database, name)
    assert found is not None
    with Passwords() as passwords:
        return asyncio.run(passwords.verify(found[1], secret))


def test_a_secret_is_alone_on_standard_output(url: str, database: Database) -> None:
    """So that it can be piped where it is needed; what it is stands beside it."""
    result = _run(url, "add", "batch", "--scope", "predict:iris", "--scope", "feedback", "--plan", "600/minute")
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}\n", result.stdout)
    assert result.stderr == "presage: batch is registered\npresage: its secret, shown only now:\n"
    assert _opens(database, "batch", result.stdout.strip())
    (client,) = _listed(url, "list")
    assert client["scopes"] == ["feedback", "predict:iris"]
    assert (client["name"], client["kind"], client["plan"], client["disabled"]) == (
        "batch",
        "service",
        "600/minute",
        None,
    )


def test_a_users_password_is_asked_for_twice(url: str, database: Database) -> None:
    """It is not shown, and nothing is on standard output."""
    result = _run(url, "add", "ann", "--kind", "user", given=f"{PASSWORD}\n{PASSWORD}\n")
    assert result.stdout == ""
    assert PASSWORD not in result.output
    assert _opens(database, "ann", PASSWORD)
    other = PASSWORD + "!"
    assert _run(url, "rotate", "ann", given=f"{other}\n{other}\n").stdout == ""
    assert _opens(database, "ann", other)


def test_a_users_password_can_be_made(url: str, database: Database) -> None:
    """Then it is printed as a service's secret is."""
    made = _run(url, "add", "ann", "--kind", "user", "--generate").stdout.strip()
    assert _opens(database, "ann", made)
    again = _run(url, "rotate", "ann", "--generate").stdout.strip()
    assert again != made
    assert _opens(database, "ann", again)


def test_no_secret_is_ever_an_argument(url: str) -> None:
    """Everybody on the machine can read those."""
    for command in clients.commands.values():
        assert not [param.name for param in command.params if re.search("password|secret", str(param.name))]
    assert _invoke(url, "add", "ann", "--password", PASSWORD).exit_code == 2


def test_clients_are_shown_as_a_table(url: str) -> None:
    """What is empty is a dash; nothing at all is said beside the output."""
    assert (_run(url, "list").stdout, _run(url, "list").stderr) == ("", "presage: no clients are registered\n")
    assert _listed(url, "list") == []
    _run(url, "add", "batch", "--scope", "predict", "--scope", "read")
    head, line = _run(url, "list").stdout.splitlines()
    assert head.split() == ["NAME", "KIND", "SCOPES", "PLAN", "CREATED", "DISABLED"]
    assert re.fullmatch(r"batch +service +predict read +- +20\S+Z +-", line)


def test_a_client_is_changed_disabled_and_enabled(url: str) -> None:
    """Only what is named changes."""
    _run(url, "add", "batch", "--plan", "1/day")
    _run(url, "change", "batch", "--scope", "read")
    assert [(c["scopes"], c["plan"]) for c in _listed(url, "list")] == [(["read"], "1/day")]
    _run(url, "change", "batch", "--no-plan")
    assert [(c["scopes"], c["plan"]) for c in _listed(url, "list")] == [(["read"], None)]
    _run(url, "change", "batch", "--plan", "2/day")
    _run(url, "disable", "batch")
    (client,) = _listed(url, "list")
    assert client["plan"] == "2/day"
    assert client["disabled"]
    _run(url, "enable", "batch")
    assert _listed(url, "list")[0]["disabled"] is None


@pytest.mark.parametrize("options", [(), ("--plan", "1/day", "--no-plan")])
def test_a_change_must_make_sense(url: str, options: Sequence[str]) -> None:
    """Nothing to change, or two things at once, is a mistake of whoever types."""
    _run(url, "add", "batch")
    assert _invoke(url, "change", "batch", *options).exit_code == 2


def test_another_secret_and_no_tokens(url: str, database: Database) -> None:
    """The first secret opens nothing any more."""
    first = _run(url, "add", "batch").stdout.strip()
    second = _run(url, "rotate", "batch", "--revoke-tokens").stdout.strip()
    assert _opens(database, "batch", second)
    assert not _opens(database, "batch", first)
    found = find_client(database, "batch")
    assert found is not None
    assert found[0].tokens_not_before is not None


def test_a_key_is_made_shown_once_and_revoked(url: str) -> None:
    """What is listed later does not hold it."""
    _run(url, "add", "batch")
    key = _run(url, "key", "batch", "--expires", "90d", "--note", "nightly run").stdout
    assert re.fullmatch(r"presage_[a-z0-9]{12}_[A-Za-z0-9_-]{43}\n", key)
    identifier = key.split("_")[1]
    (listed,) = _listed(url, "keys", "batch")
    assert (listed["id"], listed["note"], listed["revoked"]) == (identifier, "nightly run", None)
    lasts = datetime.fromisoformat(listed["expires"]) - datetime.now(UTC)
    assert timedelta(days=89, hours=23) < lasts <= timedelta(days=90)
    assert key.strip() not in _run(url, "keys", "batch").output
    _run(url, "revoke-key", identifier)
    assert _listed(url, "keys", "batch")[0]["revoked"]
    assert _invoke(url, "key", "batch", "--expires", "soon").exit_code == 2


def test_a_token_is_revoked_by_its_id_or_as_it_is(url: str, database: Database) -> None:
    """Its own end is what counts; of one whose id is all that is known, the longest that there is."""
    secret = Key("kid", "HS256", b"s" * 32, b"s" * 32, "presage", "presage", ("at+jwt",))
    now = datetime.now(UTC)
    token = issue(secret, "batch", frozenset({"predict"}), now=now.timestamp(), seconds=600)
    _run(url, "revoke-token", token)
    _run(url, "revoke-token", "an-id")
    _run(url, "revoke-token", "another", "--expires", "12h")
    with database.reading() as connection:
        columns = select(RevokedTokenRow.jti, RevokedTokenRow.expires_at).order_by(RevokedTokenRow.expires_at)
        (first, first_ends), (second, second_ends), (third, third_ends) = connection.execute(columns)
        subjects = connection.scalars(select(AuditRow.subject)).all()
    assert first_ends == now.replace(microsecond=0) + timedelta(seconds=600)
    assert (second, third) == ("another", "an-id")
    assert abs(second_ends - now - timedelta(hours=12)) < timedelta(minutes=1)
    assert abs(third_ends - now - timedelta(days=30)) < timedelta(minutes=1)
    assert sorted(subjects) == sorted([first, second, third])
    assert _refused(url, "revoke-token", "a.b.c") == "that is neither a token nor its jti"


def test_what_is_refused_is_one_line(url: str) -> None:
    """It names all that does not fit."""
    _run(url, "add", "batch")
    assert _refused(url, "add", "batch") == "a client of that name is registered already"
    assert _refused(url, "disable", "nobody") == "no client of that name is registered"
    assert _refused(url, "revoke-key", "nobodys12345") == "no API key of that id exists"
    wrong = _refused(url, "add", "bad name", "--scope", "x", "--plan", "9")
    assert re.match("name must be .*; scopes must be .*; plan must be ", wrong)


def test_a_database_without_the_tables_says_what_to_run(tmp_path: Path) -> None:
    """In one line, with exit code 1, and no file is made."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "app", "clients", "list"],
        cwd=ROOT,
        env=clean_environment(DATABASE_URL=f"sqlite:///{tmp_path}/presage.db"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "presage: the database lacks the tables of this release: run `python -m app migrate`\n"
    assert not (tmp_path / "presage.db").exists()


def test_a_database_that_is_away_is_one_line() -> None:
    """Without its address, which may hold a password."""
    url = f"postgresql://u:secret@127.0.0.1:{free_port()}/d"
    assert _refused(url, "list") == "the database at DATABASE_URL does not answer"


def test_the_audit_says_that_it_was_the_operator(url: str, database: Database) -> None:
    """As for every command."""
    _run(url, "add", "batch")
    with database.reading() as connection:
        rows = connection.execute(select(AuditRow.principal, AuditRow.action, AuditRow.subject)).all()
    assert [tuple(row) for row in rows] == [("operator", "client.add", "batch")]
