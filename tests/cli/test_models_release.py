"""`models alias`, `traffic`, `promote`, `rollback` and `history`: what the person at the terminal types and sees."""

import json
import os
import pwd
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from app.cli.models import models
from app.config import StorageSettings
from app.errors import OperatorError
from app.storage.database import Database
from app.storage.migrations import upgrade
from tests.support.releases import MODULES, answered, fill, load, write_pair, write_threshold

ME = f"cli:{pwd.getpwuid(os.getuid()).pw_name}"


class Terminal:
    """A folder of models, a database with what its champion has answered, and commands on both."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "models"
        self.url = f"sqlite:///{folder}/presage.db"
        write_pair(self.root)
        write_threshold(self.root, 3, 3.0)
        storage = StorageSettings(database_url=SecretStr(self.url))
        upgrade(storage)
        with Database(storage) as database:
            fill(database, answered(load(self.root), [x / 5 for x in range(100)]))

    def invoke(self, *arguments: str, url: str | None = None) -> Result:
        """One command."""
        environment = {
            "MODELS_DIR": str(self.root),
            "DATABASE_URL": url or self.url,
            "MODEL_MODULES": ",".join(MODULES),
            "COMPILE": "off",
        }
        return CliRunner().invoke(models, arguments, env=environment)

    def run(self, *arguments: str) -> str:
        """One that succeeds; what is on standard output."""
        result = self.invoke(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    def refused(self, *arguments: str, url: str | None = None) -> str:
        """The message of one that does not."""
        result = self.invoke(*arguments, url=url)
        assert isinstance(result.exception, OperatorError), result.output
        return str(result.exception)

    def aliases(self) -> Any:
        """On disk."""
        return json.loads((self.root / "toy" / "aliases.json").read_text())


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """With version 1 as the champion."""
    return Terminal(tmp_path)


def test_a_promotion_shows_its_evidence_as_a_table(terminal: Terminal) -> None:
    """One line for each check, and what came of it."""
    head, *checks, last = terminal.run("promote", "toy", "2").splitlines()
    assert head.split() == ["CHECK", "RESULT", "DETAIL"]
    assert [line.split()[:2] for line in checks] == [
        ["schema", "passed"],
        ["golden", "passed"],
        ["replay", "passed"],
        ["latency", "passed"],
        ["accuracy", "unknown"],
    ]
    assert last == "toy: 2 is the champion now"
    assert terminal.aliases() == {"champion": 2, "previous": 1}
    assert terminal.run("promote", "toy", "2") == "toy: 2 is the champion already\n"


def test_a_refused_promotion_shows_why(terminal: Terminal) -> None:
    """The table, the message, and no change; force needs a reason."""
    result = terminal.invoke("promote", "toy", "3")
    assert re.search(r"^replay +FAILED +6\d of 100 labels equal$", result.stdout, re.MULTILINE)
    assert str(result.exception) == "toy 3 is not promoted: replay"
    assert terminal.invoke("promote", "toy", "3", "--force").exit_code == 2
    assert terminal.aliases() == {"champion": 1}
    forced = terminal.run("promote", "toy", "3", "--force", "--reason", "by law")
    assert forced.splitlines()[-1] == "toy: 3 is the champion now, by force"


def test_limits_are_options_and_evidence_is_json(terminal: Terminal) -> None:
    """With all its figures."""
    printed = terminal.run("promote", "toy", "3", "--least-equal", "0.5", "--rows", "80", "--json")
    evidence = json.loads(printed[: printed.rindex("}") + 1])
    assert (evidence["passed"], evidence["limits"]["rows"], evidence["limits"]["least_equal"]) == (True, 80, 0.5)
    (replay,) = [check for check in evidence["checks"] if check["check"] == "replay"]
    assert replay["figures"]["rows"] == 80


def test_a_rollback_is_one_line(terminal: Terminal) -> None:
    """Repeated with --from it does no harm."""
    terminal.run("promote", "toy", "2")
    assert terminal.run("rollback", "toy", "--from", "2") == "toy: 1 is the champion again\n"
    assert terminal.run("rollback", "toy", "--from", "2") == "toy: the champion is 1 already, and not 2\n"
    assert terminal.refused("rollback", "toy") == "toy has no previous champion; the champion is 1"


def test_a_rollback_waits_for_no_database(terminal: Terminal) -> None:
    """It says that the record will come; the next command brings it."""
    terminal.run("promote", "toy", "2")
    away = "postgresql://nobody@127.0.0.1:1/nothing"
    assert "nothing has changed" in terminal.refused("alias", "toy", "shadow", "2", url=away)
    result = terminal.invoke("rollback", "toy", url=away)
    assert (result.exit_code, terminal.aliases()) == (0, {"champion": 1})
    assert "goes on record once" in result.stderr
    assert "rollback" in terminal.run("history", "toy")


def test_names_are_given_and_taken(terminal: Terminal) -> None:
    """A number or another name; the champion is not among them."""
    assert terminal.run("alias", "toy", "challenger", "2") == "toy: challenger is 2 now\n"
    assert terminal.run("alias", "toy", "v2", "challenger") == "toy: v2 is 2 now\n"
    assert terminal.run("alias", "toy", "challenger", "--delete") == "toy: challenger is gone\n"
    assert terminal.aliases() == {"champion": 1, "v2": 2}
    assert "promotion or a rollback" in terminal.refused("alias", "toy", "champion", "2")
    assert terminal.refused("alias", "toy", "shadow", "9") == "toy has no such version; versions: 1, 2, 3"
    assert terminal.refused("alias", "other", "shadow", "1").endswith("models: toy")
    assert terminal.invoke("alias", "toy", "shadow").exit_code == 2
    assert terminal.invoke("alias", "toy", "shadow", "2", "--delete").exit_code == 2


def test_a_version_that_is_refused_is_refused_with_all_that_is_known(terminal: Terminal) -> None:
    """At the terminal files may be named."""
    (terminal.root / "toy" / "2" / "manifest.json").write_text("{}")
    message = terminal.refused("alias", "toy", "shadow", "2")
    assert message.startswith("toy 2 would not be served: manifest_invalid (manifest_invalid: ")
    assert str(terminal.root / "toy" / "2" / "manifest.json") in message


def test_traffic_is_shown_and_shared_out(terminal: Terminal) -> None:
    """What is not named stays."""
    assert terminal.run("traffic", "toy").splitlines() == [
        "challenger_weight: 0.0",
        "sticky_by: principal",
        "shadow_share: 1.0",
    ]
    terminal.run("traffic", "toy", "--challenger-weight", "0.25")
    assert "challenger_weight: 0.25" in terminal.run("traffic", "toy", "--sticky-by", "field:x")
    assert "its fields: x" in terminal.refused("traffic", "toy", "--sticky-by", "field:y")
    assert terminal.invoke("traffic", "toy", "--shadow-share", "2").exit_code == 2


def test_history_says_who_and_what(terminal: Terminal) -> None:
    """Newest first."""
    assert terminal.run("history", "toy") == ""
    terminal.run("alias", "toy", "challenger", "3")
    terminal.run("promote", "toy", "challenger", "--force", "--reason", "by law")
    terminal.run("rollback", "toy")
    terminal.run("traffic", "toy", "--shadow-share", "0.5")
    head, *rows = terminal.run("history", "toy").splitlines()
    assert head.split() == ["TIME", "WHO", "ACTION", "CHANGE", "WHY"]
    assert [re.split(r" {2,}", row)[1:] for row in rows] == [
        [ME, "traffic", "shadow_share 1.0 → 0.5", "-"],
        [ME, "rollback", "champion 3 → 1", "-"],
        [ME, "promote", "champion 1 → 3", "by force: by law"],
        [ME, "alias", "challenger none → 3", "-"],
    ]
    documents = [json.loads(line) for line in terminal.run("history", "toy", "--size", "2", "--json").splitlines()]
    assert [document["action"] for document in documents] == ["model.traffic", "model.rollback"]
    assert documents[1]["after"]["aliases"] == {"champion": 1}
