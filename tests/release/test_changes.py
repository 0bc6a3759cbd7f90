"""Changes of what is served: idempotent, one at a time, and on record, whatever crashes in the middle of one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.config import StorageSettings
from app.errors import (
    AliasProtected,
    ChampionChanged,
    InvalidInput,
    ModelNotFound,
    ModelsUnwritable,
    NothingToRollBack,
    PromotionRefused,
    StorageUnavailable,
    VersionNotFound,
    VersionUnusable,
)
from app.registry.aliases import changing_model, write_aliases
from app.release.changes import ACTIONS, Change, Releases
from app.release.evidence import Evidence, Limits
from app.release.notes import write_note
from app.storage.audit import Entry
from app.storage.database import Database
from tests.support.postgres import execute
from tests.support.releases import answered, fill, load, settings, write_pair, write_threshold
from tests.support.server import ROOT, clean_environment

QUICK = Limits(rows=50)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`toy` 1, the champion, and 2, which answers alike; 3 does not."""
    folder = tmp_path / "models"
    write_pair(folder)
    write_threshold(folder, 3, 3.0)
    return folder


@pytest.fixture
def releases(root: Path, database: Database) -> Releases:
    """On a database that is there; the test runs once on each of the two."""
    return Releases(settings(root), database)


@pytest.fixture
def away(root: Path, tmp_path: Path) -> Iterator[Releases]:
    """On a database that is not there."""
    url = SecretStr("postgresql://nobody@127.0.0.1:1/nothing")
    with Database(StorageSettings(database_url=url, journal_dir=tmp_path / "journal")) as database:
        yield Releases(settings(root), database)


def _aliases(root: Path) -> Any:
    return json.loads((root / "toy" / "aliases.json").read_text())


def _entries(releases: Releases) -> list[Entry]:
    """Oldest first."""
    return releases.history("toy", 100)[::-1]


def _litter(root: Path) -> list[str]:
    folder = root / "toy" / ".changes"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_promotion_moves_the_champion_and_keeps_the_old_one(root: Path, releases: Releases) -> None:
    """What was a challenger has served its purpose; other names stay."""
    write_aliases(root / "toy" / "aliases.json", {"champion": 1, "challenger": 2, "shadow": 3, "v1": 1})
    change = releases.promote("toy", "challenger", by="ann", limits=QUICK)
    assert (change.changed, change.recorded, change.detail) == (True, True, "2 is the champion now")
    after = {"champion": 2, "previous": 1, "shadow": 3, "v1": 1}
    assert _aliases(root) == change.aliases == after
    (entry,) = _entries(releases)
    assert (entry.principal, entry.action, entry.subject) == ("ann", "model.promote", "toy")
    assert entry.before is not None
    assert entry.after is not None
    assert entry.before["aliases"] == {"champion": 1, "challenger": 2, "shadow": 3, "v1": 1}
    assert entry.before["traffic"] == entry.after["traffic"]
    assert (entry.after["aliases"], entry.after["forced"]) == (after, False)
    assert Evidence.model_validate(entry.after["evidence"]).passed
    assert _litter(root) == []


def test_a_promotion_is_refused_with_its_evidence(root: Path, database: Database, releases: Releases) -> None:
    """It changes nothing, and nothing is on record."""
    fill(database, answered(load(root, 1), [x / 5 for x in range(100)]))
    with pytest.raises(PromotionRefused, match="toy 3 is not promoted: replay") as raised:
        releases.promote("toy", 3, by="ann")
    evidence = Evidence.model_validate(raised.value.members["evidence"])
    assert [check.check for check in evidence.checks if check.passed is False] == ["replay"]
    assert (_aliases(root), _entries(releases)) == ({"champion": 1}, [])


def test_force_needs_a_reason_and_is_on_record(root: Path, database: Database, releases: Releases) -> None:
    """As such only where it was needed."""
    fill(database, answered(load(root, 1), [x / 5 for x in range(100)]))
    with pytest.raises(InvalidInput):
        releases.promote("toy", 3, by="ann", force=True, reason=" ")
    with pytest.raises(InvalidInput):
        releases.promote("toy", 3, by="ann", force=True, reason="a" * 1_001)
    change = releases.promote("toy", 3, by="ann", force=True, reason="the old one is illegal")
    assert change.detail == "3 is the champion now, by force"
    releases.promote("toy", 2, by="ann", force=True, reason="and back", limits=Limits(least_equal=0.0))
    forced, free = (entry.after or {} for entry in _entries(releases))
    assert (forced["forced"], forced["reason"], forced["evidence"]["passed"]) == (True, "the old one is illegal", False)
    assert (free["forced"], free["reason"]) == (False, "and back")


def test_the_champion_is_promoted_already(root: Path, releases: Releases) -> None:
    """Again is no error, changes nothing, and is not on record."""
    releases.promote("toy", 2, by="ann", limits=QUICK)
    change = releases.promote("toy", 2, by="ann", limits=QUICK)
    assert (change.changed, change.detail) == (False, "2 is the champion already")
    assert _aliases(root) == {"champion": 2, "previous": 1}
    assert len(_entries(releases)) == 1


def test_a_rollback_is_one_call_and_no_more(root: Path, releases: Releases) -> None:
    """To the previous champion; a second one finds nothing, and one that names what it leaves does no harm."""
    releases.promote("toy", 2, by="ann", limits=QUICK)
    change = releases.rollback("toy", by="bob", leaving=2)
    assert (change.changed, change.detail, change.recorded) == (True, "1 is the champion again", True)
    assert _aliases(root) == {"champion": 1}
    again = releases.rollback("toy", by="bob", leaving=2)
    assert (again.changed, again.detail) == (False, "the champion is 1 already, and not 2")
    with pytest.raises(NothingToRollBack):
        releases.rollback("toy", by="bob")
    with pytest.raises(NothingToRollBack):
        releases.rollback("toy", by="bob", leaving=1)
    assert [(entry.principal, entry.action) for entry in _entries(releases)] == [
        ("ann", "model.promote"),
        ("bob", "model.rollback"),
    ]


def test_a_previous_champion_that_is_gone_is_refused(root: Path, releases: Releases) -> None:
    """By name, and nothing changes."""
    aliases = {"champion": 1, "previous": 9}
    write_aliases(root / "toy" / "aliases.json", aliases)
    with pytest.raises(VersionUnusable, match="toy 9 would not be served: manifest_unreadable"):
        releases.rollback("toy", by="ann")
    assert _aliases(root) == aliases


def test_aliases_are_set_and_deleted_as_often_as_one_likes(root: Path, releases: Releases) -> None:
    """The first time changes something."""
    changes = [releases.set_alias("toy", "challenger", 2, by="ann") for _ in range(2)]
    changes += [releases.delete_alias("toy", "challenger", by="ann") for _ in range(2)]
    assert [change.changed for change in changes] == [True, False, True, False]
    assert _aliases(root) == {"champion": 1}
    first, second = _entries(releases)
    assert (first.action, (first.after or {})["aliases"]) == ("model.alias", {"challenger": 2, "champion": 1})
    assert (second.action, (second.after or {})["aliases"]) == ("model.alias.delete", {"champion": 1})


def test_without_a_file_the_champion_of_now_is_written_down(root: Path, releases: Releases) -> None:
    """Else a version that is published later would be the champion by itself."""
    (root / "toy" / "aliases.json").unlink()
    releases.set_alias("toy", "shadow", 1, by="ann")
    assert _aliases(root) == {"champion": 3, "shadow": 1}


def test_the_champion_is_no_alias_like_others(releases: Releases) -> None:
    """It cannot be deleted, nor set past the gate."""
    with pytest.raises(AliasProtected):
        releases.delete_alias("toy", "champion", by="ann")
    with pytest.raises(AliasProtected):
        releases.set_alias("toy", "champion", 2, by="ann")


def test_what_does_not_exist_is_refused_by_name(releases: Releases) -> None:
    """Models, versions and aliases."""
    with pytest.raises(ModelNotFound, match="models: toy"):
        releases.set_alias("other", "shadow", 1, by="ann")
    with pytest.raises(VersionNotFound, match="versions: 1, 2, 3"):
        releases.set_alias("toy", "shadow", 4, by="ann")
    with pytest.raises(VersionNotFound):
        releases.promote("toy", "challenger", by="ann")
    with pytest.raises(InvalidInput):
        releases.set_alias("toy", "Not An Alias", 1, by="ann")


@pytest.mark.parametrize(
    "change",
    [
        lambda releases: releases.set_alias("toy", "shadow", 4, by="ann"),
        lambda releases: releases.promote("toy", 4, by="ann", force=True, reason="now"),
    ],
)
def test_a_version_that_would_not_load_gets_no_name(
    root: Path, releases: Releases, change: Callable[[Releases], Change]
) -> None:
    """Not even by force."""
    write_threshold(root, 4, 8.0)
    (root / "toy" / "4" / "model.joblib").write_bytes(b"something else")
    with pytest.raises(VersionUnusable, match="toy 4 would not be served: digest_mismatch"):
        change(releases)
    assert (_aliases(root), _entries(releases)) == ({"champion": 1}, [])


def test_a_champion_that_cannot_be_loaded_can_be_replaced(root: Path, releases: Releases) -> None:
    """That is when it has to be."""
    (root / "toy" / "1" / "model.joblib").write_bytes(b"something else")
    assert releases.promote("toy", 2, by="ann", limits=QUICK).changed
    releases.rollback("toy", by="ann")
    (root / "toy" / "1" / "manifest.json").write_text("{}")
    assert releases.promote("toy", 2, by="ann", limits=QUICK).changed


def test_traffic_is_shared_out_by_members(root: Path, releases: Releases) -> None:
    """What is not named stays; what it is already is no change."""
    changes = [
        releases.set_traffic("toy", {"challenger_weight": 0.25}, by="ann"),
        releases.set_traffic("toy", {"sticky_by": "field:x"}, by="ann"),
        releases.set_traffic("toy", {"challenger_weight": 0.25, "sticky_by": "field:x"}, by="ann"),
    ]
    assert [change.changed for change in changes] == [True, True, False]
    rules = {"challenger_weight": 0.25, "sticky_by": "field:x", "shadow_share": 1.0}
    assert json.loads((root / "toy" / "traffic.json").read_text()) == rules
    assert releases.traffic("toy").model_dump() == rules
    last = _entries(releases)[-1]
    assert (last.before or {})["traffic"] == {**rules, "sticky_by": "principal"}
    assert (last.after or {})["traffic"] == rules
    assert (last.after or {})["aliases"] == {"champion": 1}


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"challenger_weight": 1.5}, "challenger_weight"),
        ({"sticky_by": "cookie:a"}, "sticky_by"),
        ({"sticky_by": "field:y"}, "its fields: x"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_traffic_that_makes_no_sense_is_refused(
    root: Path, releases: Releases, members: dict[str, Any], told: str
) -> None:
    """And the member is named."""
    with pytest.raises(InvalidInput, match=told):
        releases.set_traffic("toy", members, by="ann")
    assert not (root / "toy" / "traffic.json").exists()


def test_rules_that_do_not_fit_can_only_be_replaced_as_a_whole(root: Path, releases: Releases) -> None:
    """And hold up no rollback."""
    write_aliases(root / "toy" / "aliases.json", {"champion": 2, "previous": 1})
    (root / "toy" / "traffic.json").write_text("{")
    with pytest.raises(VersionUnusable):
        releases.set_traffic("toy", {"shadow_share": 0.5}, by="ann")
    assert releases.rollback("toy", by="ann").changed
    whole = {"challenger_weight": 0.0, "sticky_by": "principal", "shadow_share": 0.5}
    assert releases.set_traffic("toy", whole, by="ann").changed
    assert [(entry.before or {})["traffic"] for entry in _entries(releases)] == [None, None]


def test_aliases_that_do_not_fit_must_be_mended_first(root: Path, releases: Releases) -> None:
    """Nothing is guessed."""
    (root / "toy" / "aliases.json").write_text("{")
    changes: tuple[Callable[[], Change], ...] = (
        lambda: releases.rollback("toy", by="ann"),
        lambda: releases.promote("toy", 2, by="ann"),
        lambda: releases.set_alias("toy", "shadow", 2, by="ann"),
    )
    for change in changes:
        with pytest.raises(VersionUnusable, match="must be mended first: aliases_invalid"):
            change()


def test_of_two_promotions_at_once_one_is_told_of_the_other(root: Path, releases: Releases) -> None:
    """Both examined the same champion; it is replaced once."""
    with ThreadPoolExecutor(2) as pool:
        with changing_model(root / "toy"):  # so that both have their evidence before either changes anything
            calls = [pool.submit(releases.promote, "toy", version, by="ann", limits=QUICK) for version in (2, 3)]
            _until(lambda: _waiting_for_the_lock(2))
        outcomes = [call.exception() for call in calls]
    assert [type(outcome) for outcome in outcomes if outcome] == [ChampionChanged]
    (entry,) = _entries(releases)
    assert _aliases(root) == (entry.after or {})["aliases"]
    assert _aliases(root)["previous"] == 1


def test_of_two_promotions_of_the_same_version_the_second_changes_nothing(root: Path, releases: Releases) -> None:
    """It says so."""
    with ThreadPoolExecutor(2) as pool:
        with changing_model(root / "toy"):
            calls = [pool.submit(releases.promote, "toy", 2, by="ann", limits=QUICK) for _ in range(2)]
            _until(lambda: _waiting_for_the_lock(2))
        changes = [call.result() for call in calls]
    assert sorted(change.changed for change in changes) == [False, True]
    assert len(_entries(releases)) == 1
    assert _aliases(root) == {"champion": 2, "previous": 1}


def _waiting_for_the_lock(count: int) -> bool:
    """Whether so many calls of this process wait for a lock of a file, as the kernel has it."""
    waiting = [line for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
    return sum(line.split()[5] == str(os.getpid()) for line in waiting) >= count


def _until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    "change",
    [
        lambda releases: releases.set_alias("toy", "shadow", 2, by="ann"),
        lambda releases: releases.delete_alias("toy", "previous", by="ann"),
        lambda releases: releases.set_traffic("toy", {"shadow_share": 0.5}, by="ann"),
        lambda releases: releases.promote("toy", 2, by="ann"),
    ],
)
def test_without_the_database_nothing_changes(root: Path, away: Releases, change: Callable[[Releases], Change]) -> None:
    """An unrecorded change is none."""
    aliases = {"champion": 1, "previous": 3}
    write_aliases(root / "toy" / "aliases.json", aliases)
    with pytest.raises(StorageUnavailable):
        change(away)
    assert (_aliases(root), _litter(root)) == (aliases, [])
    assert not (root / "toy" / "traffic.json").exists()


def test_a_rollback_waits_for_no_database_and_is_recorded_later(root: Path, away: Releases, releases: Releases) -> None:
    """By whoever comes next, with its own time; even two of them."""
    write_aliases(root / "toy" / "aliases.json", {"champion": 2, "previous": 1})
    started = time.monotonic()
    change = away.rollback("toy", by="ann")
    assert time.monotonic() - started < 5
    assert (change.changed, change.recorded, _aliases(root)) == (True, False, {"champion": 1})
    write_aliases(root / "toy" / "aliases.json", {"champion": 1, "previous": 3})
    assert away.rollback("toy", by="bob").changed
    with pytest.raises(StorageUnavailable):
        away.set_alias("toy", "shadow", 2, by="ann")
    assert releases.unsettled() == ["toy"]
    releases.set_alias("toy", "shadow", 2, by="eve")
    found = [(entry.principal, entry.action) for entry in _entries(releases)]
    assert found == [("ann", "model.rollback"), ("bob", "model.rollback"), ("eve", "model.alias")]
    assert (_litter(root), releases.unsettled()) == ([], [])


def test_what_a_crash_left_before_the_change_never_was(root: Path, away: Releases, releases: Releases) -> None:
    """The new content is still there: the file has not been replaced."""
    write_aliases(root / "toy" / "aliases.json", {"champion": 2, "previous": 1})
    away.rollback("toy", by="ann")
    write_aliases(root / "toy" / "aliases.json", {"champion": 2, "previous": 1})
    (note,) = (root / "toy" / ".changes").glob("*.json")
    note.with_suffix(".next").write_text("{}")  # as it was before it got the file's name
    (root / "toy" / ".changes" / "0.next").write_text("{}")  # and one of which there is no entry yet
    (root / "toy" / ".changes" / "0.partial").write_text("{")
    releases.settle()
    assert (_litter(root), _entries(releases)) == ([], [])
    assert _aliases(root) == {"champion": 2, "previous": 1}


def test_a_record_that_came_through_before_the_crash_stays_one(root: Path, releases: Releases) -> None:
    """Only the note was left behind; evidence with all its figures is the same row when it is written again."""
    releases.promote("toy", 2, by="ann", limits=QUICK)
    (entry,) = _entries(releases)
    write_note(root / "toy", entry, (root / "toy" / "aliases.json").read_bytes()).carry_out("aliases.json")
    releases.settle()
    assert (_entries(releases), _litter(root)) == ([entry], [])


def test_a_note_that_is_none_is_left_alone(root: Path, releases: Releases) -> None:
    """It holds nobody up."""
    folder = root / "toy" / ".changes"
    folder.mkdir()
    (folder / "strange.json").write_text("{}")
    assert releases.set_alias("toy", "shadow", 2, by="ann").changed
    assert _litter(root) == ["strange.json"]


def test_a_commit_that_fails_leaves_a_change_with_its_record(root: Path, pg_url: str) -> None:
    """The file has been replaced by then; the row comes when the database takes it."""
    execute(
        pg_url,
        "create function full() returns trigger language plpgsql as $$ begin raise exception 'disk full' "
        "using errcode = 'disk_full'; end $$",
    )
    execute(
        pg_url,
        "create constraint trigger late after insert on audit deferrable initially deferred "
        "for each row execute function full()",
    )
    with Database(StorageSettings(database_url=SecretStr(pg_url))) as database:
        releases = Releases(settings(root), database)
        change = releases.set_alias("toy", "shadow", 2, by="ann")
        assert (change.changed, change.recorded) == (True, False)
        assert _aliases(root) == {"champion": 1, "shadow": 2}
        execute(pg_url, "drop trigger late on audit")
        (entry,) = _entries(releases)
        assert (entry.action, (entry.after or {})["aliases"]) == ("model.alias", {"champion": 1, "shadow": 2})


_VICTIM = """
import sys
from pathlib import Path
from pydantic import SecretStr
from app.config import StorageSettings
from app.release.changes import Releases
from app.storage.database import Database
from tests.support.releases import settings
with Database(StorageSettings(database_url=SecretStr(sys.argv[2]))) as database:
    Releases(settings(Path(sys.argv[1])), database).set_alias("toy", "shadow", 2, by="ann")
"""


def test_a_process_that_is_killed_between_file_and_record_leaves_both(root: Path, pg_url: str) -> None:
    """It has replaced the file, and its commit does not come to an end."""
    execute(
        pg_url,
        "create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(60); return null; end $$",
    )
    execute(
        pg_url,
        "create constraint trigger late after insert on audit deferrable initially deferred "
        "for each row execute function slow()",
    )
    command = [sys.executable, "-c", _VICTIM, str(root), pg_url]
    with subprocess.Popen(command, cwd=ROOT, env=clean_environment()) as process:
        _until(lambda: _aliases(root) == {"champion": 1, "shadow": 2})
        process.send_signal(signal.SIGKILL)
    sleeping = "select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep'"
    execute(pg_url, sleeping)
    execute(pg_url, "drop trigger late on audit")
    assert [name.rpartition(".")[2] for name in _litter(root)] == ["json"]
    with Database(StorageSettings(database_url=SecretStr(pg_url))) as database:
        (entry,) = _entries(Releases(settings(root), database))
    assert (entry.principal, (entry.after or {})["aliases"]) == ("ann", {"champion": 1, "shadow": 2})
    assert _litter(root) == []


def test_a_folder_that_cannot_be_written_is_an_error_of_its_own(root: Path, releases: Releases) -> None:
    """Nothing is on record."""
    (root / "toy" / ".changes").write_text("in the way")
    with pytest.raises(ModelsUnwritable):
        releases.set_alias("toy", "shadow", 2, by="ann")
    (root / "toy" / ".changes").unlink()
    assert _entries(releases) == []


def test_what_is_served_here_is_not_loaded_again(root: Path, database: Database) -> None:
    """A version is proven by answering; one that takes ten minutes to load is named at once."""
    from app.registry.registry import ModelRegistry  # noqa: PLC0415
    from app.telemetry.metrics import Metrics  # noqa: PLC0415

    write_aliases(root / "toy" / "aliases.json", {"champion": 1, "v1": 2})
    registry = ModelRegistry(settings(root), Metrics())
    registry.load()
    for version in ("1", "2"):
        (root / "toy" / version / "model.joblib").write_bytes(b"it would not load again")
    releases = Releases(settings(root), database, registry)
    assert releases.set_alias("toy", "shadow", "v1", by="ann").changed
    with pytest.raises(VersionUnusable):
        Releases(settings(root), database).set_alias("toy", "challenger", 2, by="ann")


def test_history_is_the_models_own(root: Path, releases: Releases) -> None:
    """A client of the same name is another matter."""
    releases.set_alias("toy", "shadow", 2, by="ann")
    assert {entry.action for entry in _entries(releases)} <= set(ACTIONS)
    assert releases.history("other", 10) == []
