"""`/admin/models` over HTTP: promotion with evidence, rollback, names, traffic, and who did it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.api.admin_models import AuditOut, ChangeOut, ModelsOut, PromotionsOut
from app.config import AuthSettings, ModelSettings, Settings, StorageSettings
from app.registry.aliases import Aliases, read_aliases, write_aliases
from app.release.changes import Releases
from app.release.evidence import Evidence
from app.storage.database import Database
from app.storage.migrations import upgrade
from tests.support.asgi import UNLIMITED, Answer, InProcess, in_process
from tests.support.postgres import running_postgres
from tests.support.releases import MODULES, answered, fill, load, settings, write_pair, write_threshold
from tests.support.tokens import SECRET, token


class Administration:
    """An application with a folder of models of its own, and an administrator called `root`."""

    def __init__(self, app: InProcess, models: Path) -> None:
        self.app = app
        self.file = models / "toy" / "aliases.json"
        self._headers = [("authorization", f"Bearer {token(sub='root', scope='admin').decode()}")]

    def ask(self, method: str, path: str, json_body: Any = None, query: str = "") -> Answer:
        """One request of the administrator's."""
        headers = [*self._headers, *([] if json_body is None else [("content-type", "application/json")])]
        return self.app.request(method, f"/admin{path}", json_body=json_body, headers=headers, query=query)

    def change(self, method: str, path: str, json_body: Any = None) -> ChangeOut:
        """One that succeeds."""
        answer = self.ask(method, f"/models/toy{path}", json_body)
        assert answer.status == 200, answer.body
        return ChangeOut.model_validate_json(answer.body)

    def refused(self, method: str, path: str, json_body: Any = None) -> tuple[int, str]:
        """Status and code of one that does not."""
        answer = self.ask(method, f"/models/toy{path}", json_body)
        return answer.status, answer.json()["code"]

    def aliases(self) -> Aliases:
        """On disk."""
        return read_aliases(self.file)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def _started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Administration]:
    folder = tmp_path_factory.mktemp("releases")
    if request.param == "sqlite":
        yield from _administration(f"sqlite:///{folder}/presage.db", folder)
    else:
        with running_postgres() as server:
            yield from _administration(server.url(), folder)


def _administration(url: str, folder: Path) -> Iterator[Administration]:
    root = folder / "models"
    write_pair(root)
    write_threshold(root, 3, 3.0)
    storage = StorageSettings(database_url=SecretStr(url), journal_dir=folder / "journal")
    upgrade(storage)
    models = ModelSettings(models_dir=root, model_modules=MODULES, compile="off", default_model="toy")
    auth = AuthSettings(jwt_secret=SecretStr(SECRET))
    with in_process(Settings(auth=auth, limits=UNLIMITED, models=models, storage=storage)) as app:
        fill(app.app.services.database, answered(load(root), [x / 5 for x in range(100)]))
        yield Administration(app, root)


@pytest.fixture
def administration(_started: Administration) -> Administration:
    """With version 1 as the champion, and no other names."""
    write_aliases(_started.file, {"champion": 1})
    _started.file.with_name("traffic.json").unlink(missing_ok=True)
    return _started


def test_the_models_are_listed_with_their_versions(administration: Administration) -> None:
    """As this process has them."""
    (model,) = ModelsOut.model_validate_json(administration.ask("GET", "/models").body).models
    assert (model.name, model.ready, model.state) == ("toy", True, "serving")
    assert [version.version for version in model.versions] == [1, 2, 3]
    assert model.versions[0].loaded
    assert model.aliases["champion"] == 1
    assert model.traffic.challenger_weight == 0


def test_a_promotion_is_answered_with_its_evidence_and_can_be_looked_up(administration: Administration) -> None:
    """Who, when, from what to what; and so is the rollback of it."""
    change = administration.change("POST", "/promote", {"version": 2})
    assert (change.changed, change.recorded, change.aliases) == (True, True, {"champion": 2, "previous": 1})
    assert change.evidence is not None
    assert change.evidence.passed
    assert change.serving is not None
    assert administration.aliases() == {"champion": 2, "previous": 1}
    assert administration.change("POST", "/promote", {"version": 2}).changed is False
    back = administration.change("POST", "/rollback", {"from": 2})
    assert (back.changed, back.aliases) == (True, {"champion": 1})
    assert administration.change("POST", "/rollback", {"from": 2}).changed is False
    page = administration.ask("GET", "/models/toy/promotions", query="size=2")
    rollback, promotion = PromotionsOut.model_validate_json(page.body).promotions
    assert (promotion.principal, promotion.action, promotion.forced) == ("root", "promote", False)
    assert (promotion.champion_before, promotion.champion) == (1, 2)
    assert promotion.evidence == change.evidence
    assert (rollback.action, rollback.champion_before, rollback.champion) == ("rollback", 2, 1)


def test_a_refused_promotion_has_its_evidence_as_a_member(administration: Administration) -> None:
    """With force and a reason it passes, and that is to be seen."""
    answer = administration.ask("POST", "/models/toy/promote", {"version": 3})
    problem = answer.json()
    assert (answer.status, problem["code"]) == (409, "promotion_refused")
    evidence = Evidence.model_validate(problem["evidence"])
    assert [check.check for check in evidence.checks if check.passed is False] == ["replay"]
    assert administration.refused("POST", "/promote", {"version": 3, "force": True}) == (422, "invalid_input")
    assert administration.aliases() == {"champion": 1}
    lenient = administration.change("POST", "/promote", {"version": 3, "limits": {"least_equal": 0.5}})
    assert lenient.changed
    administration.change("POST", "/rollback", {})
    forced = administration.change("POST", "/promote", {"version": 3, "force": True, "reason": "by law"})
    assert forced.detail.endswith("by force")
    newest = administration.ask("GET", "/models/toy/promotions", query="size=1").json()["promotions"][0]
    assert (newest["forced"], newest["reason"], newest["evidence"]["passed"]) == (True, "by law", False)


def test_names_and_traffic_are_put_as_often_as_one_likes(administration: Administration) -> None:
    """The whole of it each time."""
    for changed in (True, False):
        assert administration.change("PUT", "/aliases/challenger", {"version": 2}).changed is changed
    rules = {"challenger_weight": 0.1, "sticky_by": "field:x"}
    for changed in (True, False):
        assert administration.change("PUT", "/traffic", rules).changed is changed
    assert administration.change("PUT", "/traffic", {}).changed  # what is left out has its default
    for changed in (True, False):
        assert administration.change("DELETE", "/aliases/challenger").changed is changed
    assert administration.aliases() == {"champion": 1}


REFUSED: dict[str, tuple[str, str, Any, tuple[int, str]]] = {
    "the champion is deleted": ("DELETE", "/aliases/champion", None, (409, "alias_protected")),
    "the champion is set": ("PUT", "/aliases/champion", {"version": 2}, (409, "alias_protected")),
    "no such version": ("PUT", "/aliases/shadow", {"version": 9}, (404, "version_not_found")),
    "no such alias": ("POST", "/promote", {"version": "challenger"}, (404, "version_not_found")),
    "no version": ("POST", "/promote", {}, (422, "invalid_input")),
    "a version that is none": ("POST", "/promote", {"version": True}, (422, "invalid_input")),
    "an alias that is none": ("PUT", "/aliases/Shadow", {"version": 2}, (422, "invalid_input")),
    "a limit that is none": ("POST", "/promote", {"version": 2, "limits": {"rows": -1}}, (422, "invalid_input")),
    "an unknown limit": ("POST", "/promote", {"version": 2, "limits": {"row": 1}}, (422, "invalid_input")),
    "a weight that is none": ("PUT", "/traffic", {"challenger_weight": 2}, (422, "invalid_input")),
    "a field that is none": ("PUT", "/traffic", {"sticky_by": "field:y"}, (422, "invalid_input")),
    "nothing to roll back": ("POST", "/rollback", {}, (409, "nothing_to_roll_back")),
    "another member": ("POST", "/rollback", {"version": 1}, (422, "invalid_input")),
}


@pytest.mark.parametrize(("method", "path", "body", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_says_why(
    administration: Administration, method: str, path: str, body: Any, expected: tuple[int, str]
) -> None:
    """And changes nothing."""
    assert administration.refused(method, path, body) == expected
    assert administration.aliases() == {"champion": 1}


def test_an_unknown_model_is_a_404(administration: Administration) -> None:
    """Wherever it is named."""
    for method, path, body in (
        ("PUT", "/aliases/shadow", {"version": 1}),
        ("DELETE", "/aliases/shadow", None),
        ("PUT", "/traffic", {}),
        ("POST", "/promote", {"version": 1}),
        ("POST", "/rollback", {}),
        ("GET", "/promotions", None),
    ):
        answer = administration.ask(method, f"/models/other{path}", body)
        assert (answer.status, answer.json()["code"]) == (404, "model_not_found"), path


def test_a_version_that_would_not_load_is_refused_with_its_reason(administration: Administration) -> None:
    """No path, and nothing of the exception, reaches the caller."""
    folder = administration.file.parent / "9"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text("{}")
    answer = administration.ask("PUT", "/models/toy/aliases/shadow", {"version": 9})
    assert (answer.status, answer.json()["code"]) == (409, "version_unusable")
    assert answer.json()["detail"] == "toy 9 would not be served: manifest_invalid"
    (folder / "manifest.json").unlink()


def test_the_audit_is_read_in_pages_and_by_subject(administration: Administration) -> None:
    """Newest first; clients stand in it, too."""
    administration.ask("POST", "/clients", {"name": "somebody"})
    for version in (2, 3, 2):
        administration.change("PUT", "/aliases/shadow", {"version": version})
    seen: list[str] = []
    query = "subject=toy&action=model.alias&size=2"
    cursor = ""
    while True:
        answer = administration.ask("GET", "/audit", query=query + cursor)
        page = AuditOut.model_validate_json(answer.body)
        seen += [str(entry.id) for entry in page.entries]
        assert {(entry.subject, entry.action) for entry in page.entries} == {("toy", "model.alias")}
        if page.next is None:
            break
        cursor = f"&cursor={page.next}"
    assert len(seen) >= 3
    assert seen == sorted(set(seen), reverse=True)
    (client,) = administration.ask("GET", "/audit", query="subject=somebody").json()["entries"]
    assert (client["action"], client["principal"]) == ("client.add", "root")
    for wrong in ("size=0", "cursor=x", "subject=%00", "canary=1"):
        assert administration.ask("GET", "/audit", query=wrong).status == 422


def test_what_was_carried_out_is_on_record_when_it_is_looked_for(administration: Administration) -> None:
    """A rollback of a moment ago, which could not be recorded."""
    write_aliases(administration.file, {"champion": 2, "previous": 1})
    root = administration.file.parents[1]
    nowhere = StorageSettings(database_url=SecretStr("postgresql://nobody@127.0.0.1:1/nothing"))
    with Database(nowhere) as away:
        assert not Releases(settings(root), away).rollback("toy", by="somebody at night").recorded
    newest = administration.ask("GET", "/models/toy/promotions", query="size=1").json()["promotions"][0]
    assert (newest["principal"], newest["champion"]) == ("somebody at night", 1)


def test_without_the_database_only_a_rollback_is_carried_out(tmp_path: Path) -> None:
    """The others are refused with 503, and the answer to it says that it is not on record yet."""
    write_pair(tmp_path)
    file = tmp_path / "toy" / "aliases.json"
    write_aliases(file, {"champion": 2, "previous": 1})
    url = SecretStr("postgresql://nobody@127.0.0.1:1/nothing")
    storage = StorageSettings(database_url=url, journal_dir=tmp_path / "journal")
    models = ModelSettings(models_dir=tmp_path, model_modules=MODULES, compile="off", default_model="toy")
    auth = AuthSettings(jwt_secret=SecretStr(SECRET))
    with in_process(Settings(auth=auth, limits=UNLIMITED, models=models, storage=storage)) as app:
        administration = Administration(app, tmp_path)
        for method, path, body in (
            ("PUT", "/aliases/shadow", {"version": 1}),
            ("DELETE", "/aliases/previous", None),
            ("PUT", "/traffic", {"shadow_share": 0.5}),
            ("POST", "/promote", {"version": 1}),
            ("GET", "/promotions", None),
        ):
            answer = administration.ask(method, f"/models/toy{path}", body)
            assert (answer.status, answer.json()["code"]) == (503, "storage_unavailable"), path
            assert answer.header("retry-after")
        assert administration.aliases() == {"champion": 2, "previous": 1}
        change = administration.change("POST", "/rollback", {})
        assert (change.changed, change.recorded, change.aliases) == (True, False, {"champion": 1})
