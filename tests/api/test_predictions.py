"""The log over HTTP: what was answered can be looked up at once, and listed in pages."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from pydantic import SecretStr

from app.api.predictions import LoggedOut, LoggedPageOut
from app.config import Settings, StorageSettings
from tests.support.asgi import OPEN, Answer, InProcess, in_process
from tests.support.logged import START, add, add_feedback, failed_row, identifier, row

IRIS = {"sepal length (cm)": 5.1, "sepal width (cm)": 3.5, "petal length (cm)": 1.4, "petal width (cm)": 0.2}


def test_a_prediction_can_be_looked_up_as_soon_as_it_is_answered(logged_app: InProcess) -> None:
    """It is in the journal then, and brought into the database by the question."""
    for _ in range(5):
        answered = logged_app.request("POST", "/v2/predict/iris", json_body={"inputs": IRIS}).json()
        answer = logged_app.request("GET", f"/v2/predictions/{answered['id']}")
        assert answer.status == 200, answer.body
        found = answer.json()
        LoggedOut.model_validate_json(answer.body)
        same = ("id", "model", "version", "prediction", "probabilities")
        assert {name: found[name] for name in same} == {name: answered[name] for name in same}
        assert (found["inputs"], found["principal"], found["protocol"]) == (IRIS, "anonymous", "v2")
        made = datetime.fromisoformat(found["time"])
        assert abs((made - datetime.now(UTC)).total_seconds()) < 10


def test_a_prediction_is_shown_with_its_feedback_and_its_failure(logged_app: InProcess) -> None:
    """What is missing is absent, but for a null among the inputs, which was one."""
    known, failed = add(logged_app.app.services.database, row(1, 10), failed_row(2, 10))
    add_feedback(logged_app.app.services.database, known, "no", revisions=1)
    document = logged_app.request("GET", f"/v2/predictions/{known}").json()
    assert document["inputs"] == {"x": 1.5, "gap": None}
    assert document["feedback"] == {
        "truth": "no",
        "time": "2026-01-01T00:00:00Z",
        "received_at": "2026-01-01T00:00:00Z",
        "principal": "anonymous",
        "revisions": 1,
    }
    document = logged_app.request("GET", f"/v2/predictions/{failed}").json()
    assert document["error"] == "model_failed"
    assert not {"prediction", "probabilities", "feedback"} & document.keys()


@pytest.mark.parametrize("wanted", [str(identifier(77)), str(uuid4()), str(identifier(1e12))])
def test_an_unknown_prediction_is_a_404_of_its_own(logged_app: InProcess, wanted: str) -> None:
    """Whether such an id can exist or not; and the id is not repeated."""
    answer = logged_app.request("GET", f"/v2/predictions/{wanted}")
    assert (answer.status, answer.json()["code"]) == (404, "prediction_not_found")
    assert wanted not in answer.body.decode()


@pytest.mark.parametrize("wanted", ["canary", "0", "%00", "é", "a" * 300])
def test_an_id_that_is_none_is_refused(logged_app: InProcess, wanted: str) -> None:
    """In one sentence, without an echo."""
    answer = logged_app.request("GET", f"/v2/predictions/{wanted}")
    assert answer.status == 422
    (error,) = answer.json()["errors"]
    assert error == {"code": "wrong_type", "detail": "must be a UUID", "field": "prediction_id"}


def test_pages_follow_one_another(logged_app: InProcess) -> None:
    """Newest first, with the same question and the cursor of the page before."""
    add(logged_app.app.services.database, *(row(n, 20, model="paged", version=n % 2 + 1) for n in range(120)))
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        answer = _list(logged_app, model="paged", size=50, **cursor)
        page = LoggedPageOut.model_validate_json(answer.body)
        seen += [str(found.id) for found in page.predictions]
        if page.next is None:
            break
        add(logged_app.app.services.database, row(500 + len(seen), 20, model="paged"))
        cursor = {"cursor": page.next}
    assert seen == [str(identifier(n, 20)) for n in reversed(range(120))]


def test_the_filters_are_those_of_the_question(logged_app: InProcess) -> None:
    """Window, model, version, label, failed."""
    rows = [row(n, 30, model="sieved", version=n % 2 + 1, label="no" if n % 3 else "yes") for n in range(12)]
    add(logged_app.app.services.database, *rows, failed_row(12, 30, model="sieved"))

    def found(**query: Any) -> list[int]:
        page = _list(logged_app, model="sieved", **query).json()["predictions"]
        return [round((datetime.fromisoformat(p["time"]) - START) / timedelta(milliseconds=1)) for p in page]

    def at(milliseconds: int) -> str:
        return (START + timedelta(milliseconds=milliseconds)).isoformat().replace("+00:00", "Z")

    assert found(version=2) == [11, 9, 7, 5, 3, 1]
    assert found(label="yes") == [9, 6, 3, 0]
    assert found(failed="true") == [12]
    assert found(failed="false", since=at(9)) == [11, 10, 9]
    assert found(since=at(4), until=at(7)) == [6, 5, 4]
    assert found(until=at(2), size=1) == [1]
    assert found(until="0001-01-01T00:00:00+14:00") == found(since="9999-12-31T23:59:59-14:00") == []


@pytest.mark.parametrize(
    ("query", "field", "code"),
    [
        ("size=0", "size", "invalid"),
        ("size=501", "size", "invalid"),
        ("size=many", "size", "invalid"),
        ("since=yesterday", "since", "wrong_type"),
        ("since=1767225600", "since", "wrong_type"),
        ("until=2026-01-01T00:00:00", "until", "wrong_type"),
        ("cursor=canary", "cursor", "invalid"),
        ("cursor=", "cursor", "invalid"),
        ("model=toy&version=0", "version", "invalid"),
        ("model=../canary", "model", "invalid"),
        ("failed=canary", "failed", "invalid"),
        ("label=%00", "label", "invalid"),
        ("label=canary" + "a" * 1_000, "label", "invalid"),
        ("canary=1", None, "unknown_field"),
        ("modle=toy&canary=1", None, "unknown_field"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(
    logged_app: InProcess, query: str, field: str | None, code: str
) -> None:
    """A parameter that is ignored would mislead; names of ours are named, and nothing is repeated."""
    answer = logged_app.request("GET", "/v2/predictions", query=query)
    assert (answer.status, answer.json()["code"]) == (422, "invalid_input")
    (error,) = answer.json()["errors"]
    assert (error.get("field"), error["code"]) == (field, code)
    assert "canary" not in answer.body.decode()
    assert "modle" not in answer.body.decode()


@pytest.mark.parametrize("path", ["/v2/predictions", f"/v2/predictions/{identifier(1)}"])
def test_without_a_database_it_says_so(settings_without_a_database: Settings, path: str) -> None:
    """503, with the time after which to ask again."""
    with in_process(settings_without_a_database) as app:
        answer = app.request("GET", path)
        assert (answer.status, answer.json()["code"]) == (503, "storage_unavailable")
        assert int(answer.header("retry-after") or 0) >= 1
        body = {"prediction_id": str(identifier(1)), "truth": "no"}
        answer = app.request("POST", "/v2/feedback", json_body=body)
        assert (answer.status, answer.json()["code"]) == (503, "storage_unavailable")


@pytest.fixture
def settings_without_a_database(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Nothing listens there."""
    folder = tmp_path_factory.mktemp("absent")
    url = SecretStr("postgresql://nobody@127.0.0.1:1/nothing")
    return Settings(auth=OPEN, storage=StorageSettings(database_url=url, journal_dir=folder / "journal"))


def _list(app: InProcess, **query: Any) -> Answer:
    answer = app.request("GET", "/v2/predictions", query=urlencode(query))
    assert answer.status == 200, answer.body
    return answer
