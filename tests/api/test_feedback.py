"""Feedback over HTTP: one or many, each with its own fate, of the type that the model answers."""

import json
import time
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import uuid4

import pytest

from app.api.feedback import FeedbackManyOut, FeedbackResult
from tests.support.asgi import Answer, InProcess
from tests.support.logged import START, add, identifier, row

IRIS = {"sepal length (cm)": 5.1, "sepal width (cm)": 3.5, "petal length (cm)": 1.4, "petal width (cm)": 0.2}
HOUR = timedelta(hours=1)
_numbers = count()


@pytest.fixture
def flower(logged_app: InProcess) -> str:
    """The id of a prediction that was answered a moment ago."""
    answer = logged_app.request("POST", "/v2/predict/iris", json_body={"inputs": IRIS})
    identifier_: str = answer.json()["id"]
    return identifier_


def test_a_truth_stands_beside_its_prediction_at_once(logged_app: InProcess, flower: str) -> None:
    """Though the prediction was still in the journal."""
    answer = _give(logged_app, {"prediction_id": flower, "truth": "virginica"})
    assert answer.status == 200, answer.body
    FeedbackResult.model_validate_json(answer.body)
    assert answer.json() == {"prediction_id": flower, "status": "recorded", "revisions": 0}
    known = logged_app.request("GET", f"/v2/predictions/{flower}").json()["feedback"]
    assert (known["truth"], known["revisions"], known["principal"]) == ("virginica", 0, "anonymous")
    assert known["time"] == known["received_at"]


def test_late_repeated_and_corrected_truths(logged_app: InProcess, flower: str) -> None:
    """The newest stands."""
    then = datetime.now(UTC) - HOUR

    def say(truth: str, at: datetime | None = None) -> tuple[str, int]:
        body = {"prediction_id": flower, "truth": truth, **({"time": at.isoformat()} if at else {})}
        document = _give(logged_app, body).json()
        return document["status"], document["revisions"]

    assert say("setosa", then) == ("recorded", 0)
    assert say("setosa", then) == ("unchanged", 0)
    assert say("virginica", then - HOUR) == ("superseded", 0)
    assert say("virginica", then + HOUR / 2) == ("corrected", 1)
    assert say("setosa") == ("corrected", 2)
    assert say("setosa") == ("unchanged", 2)


def test_each_of_many_has_its_own_fate(logged_app: InProcess, flower: str) -> None:
    """A result or an error in its place, counted."""
    double = logged_app.request("POST", "/v2/predict/double", json_body={"inputs": {"x": 1}}).json()["id"]
    unknown = str(uuid4())
    items: list[Any] = [
        {"prediction_id": flower, "truth": "setosa"},
        {"prediction_id": unknown, "truth": "setosa"},
        {"prediction_id": str(identifier(3, 99)), "truth": "setosa"},
        {"prediction_id": double, "truth": "setosa"},
        {"prediction_id": double, "truth": 2},
        {"prediction_id": "canary", "truth": "setosa"},
        {"prediction_id": flower},
        {"prediction_id": flower, "truth": "canary"},
        {"prediction_id": flower, "truth": "setosa", "canary": 1},
        7,
    ]
    answer = _give(logged_app, {"items": items})
    assert answer.status == 200, answer.body
    FeedbackManyOut.model_validate_json(answer.body)
    results = answer.json()["results"]
    assert results[0] == {"prediction_id": flower, "status": "recorded", "revisions": 0}
    assert results[4] == {"prediction_id": double, "status": "recorded", "revisions": 0}
    errors = [(r["error"]["code"], r["error"].get("field")) if "error" in r else None for r in results]
    assert errors == [
        None,
        ("prediction_not_found", "prediction_id"),
        ("prediction_not_found", "prediction_id"),
        ("wrong_type", "truth"),
        None,
        ("wrong_type", "prediction_id"),
        ("required", "truth"),
        ("unknown_label", "truth"),
        ("unknown_field", None),
        ("wrong_type", None),
    ]
    assert answer.json()["counts"] == {"succeeded": 2, "failed": 8}
    assert "canary" not in answer.body.decode()


def test_of_several_about_one_prediction_the_newest_stands(logged_app: InProcess, flower: str) -> None:
    """The others are superseded by it, whatever their order."""
    then = datetime.now(UTC) - HOUR
    times = [then, None, then + HOUR / 2]
    items = [
        {"prediction_id": flower, "truth": truth, "time": at and at.isoformat()}
        for truth, at in zip(("setosa", "virginica", "versicolor"), times, strict=True)
    ]
    results = _give(logged_app, {"items": items}).json()["results"]
    assert [result["status"] for result in results] == ["superseded", "recorded", "superseded"]
    assert logged_app.request("GET", f"/v2/predictions/{flower}").json()["feedback"]["truth"] == "virginica"


@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        ({"truth": "tulip"}, "truth", "unknown_label"),
        ({"truth": 1}, "truth", "unknown_label"),
        ({"truth": True}, "truth", "unknown_label"),
        ({"truth": 0.5}, "truth", "unknown_label"),
        ({"truth": None}, "truth", "wrong_type"),
        ({"truth": ["setosa"]}, "truth", "wrong_type"),
        ({"truth": {}}, "truth", "wrong_type"),
        ({"truth": "a" * 2_000}, "truth", "wrong_type"),
        ({"time": "yesterday"}, "time", "wrong_type"),
        ({"time": 1767225600}, "time", "wrong_type"),
        ({"time": "2026-01-01T00:00:00"}, "time", "wrong_type"),
        ({"time": "2026-02-30T00:00:00Z"}, "time", "wrong_type"),
        ({"time": "0001-01-01T00:00:00+14:00"}, "time", "out_of_range"),
        ({"time": "9999-12-31T23:59:59-14:00"}, "time", "out_of_range"),
        ({"time": "2999-01-01T00:00:00Z"}, "time", "out_of_range"),
        ({"prediction_id": 7}, "prediction_id", "wrong_type"),
        ({"canary": 7}, None, "unknown_field"),
    ],
)
def test_a_single_one_that_does_not_fit_is_refused(
    logged_app: InProcess, flower: str, change: dict[str, Any], field: str | None, code: str
) -> None:
    """The error is the answer, and nothing is recorded."""
    answer = _give(logged_app, {"prediction_id": flower, "truth": "setosa", **change})
    assert (answer.status, answer.json()["code"]) == (422, "invalid_input")
    (error,) = answer.json()["errors"]
    assert (error.get("field"), error["code"]) == (field, code)
    assert "canary" not in answer.body.decode()
    assert "feedback" not in logged_app.request("GET", f"/v2/predictions/{flower}").json()


@pytest.mark.parametrize("truth", ["setosa", True, "2"])
def test_the_truth_of_a_regression_is_a_number(logged_app: InProcess, truth: Any) -> None:
    """Any finite one."""
    (double,) = add(logged_app.app.services.database, _regression())
    answer = _give(logged_app, {"prediction_id": str(double), "truth": truth})
    assert (answer.status, answer.json()["errors"][0]["code"]) == (422, "wrong_type")
    too_large = b'{"prediction_id": "%s", "truth": %s}' % (str(double).encode(), b"9" * 400)
    answer = logged_app.request("POST", "/v2/feedback", body=too_large)
    assert (answer.status, answer.json()["errors"][0]["code"]) == (422, "out_of_range")
    infinite = b'{"prediction_id": "%s", "truth": 1e999}' % str(double).encode()
    answer = logged_app.request("POST", "/v2/feedback", body=infinite)
    assert (answer.status, answer.json()["errors"][0]["code"]) == (422, "not_finite")


def test_numbers_that_are_equal_are_the_same_truth(logged_app: InProcess) -> None:
    """3 and 3.0, in whatever spelling."""
    (double,) = add(logged_app.app.services.database, _regression())
    for spelling, status in (("3", "recorded"), ("3.0", "unchanged"), ("3e0", "unchanged"), ("-0.5", "corrected")):
        body = f'{{"prediction_id": "{double}", "truth": {spelling}}}'.encode()
        assert logged_app.request("POST", "/v2/feedback", body=body).json()["status"] == status


@pytest.mark.parametrize(("output", "good", "bad"), [("yes", "\0", 1), (1, 2, "1"), (True, False, 0), (0.5, 3, "3")])
def test_a_version_that_is_gone_is_judged_by_its_prediction(
    logged_app: InProcess, output: Any, good: Any, bad: Any
) -> None:
    """The truth is of the kind that was predicted."""
    (gone,) = add(logged_app.app.services.database, row(40_000, next(_numbers), model="gone", output=output))
    assert _give(logged_app, {"prediction_id": str(gone), "truth": bad}).status == 422
    assert _give(logged_app, {"prediction_id": str(gone), "truth": good}).status == 200


def test_an_unknown_prediction_is_a_404(logged_app: InProcess) -> None:
    """With a code of its own."""
    answer = _give(logged_app, {"prediction_id": str(identifier(3, 98)), "truth": "setosa"})
    assert (answer.status, answer.json()["code"]) == (404, "prediction_not_found")


def test_ten_thousand_are_taken_and_one_more_is_not(logged_app: InProcess) -> None:
    """In seconds; sent again, nothing changes."""
    rows = [row(60_000, n, model="iris", output="setosa") for n in range(10_000)]
    add(logged_app.app.services.database, *rows)
    items = [{"prediction_id": str(r["id"]), "truth": "virginica"} for r in rows]
    started = time.perf_counter()
    answer = _give(logged_app, {"items": items})
    assert answer.json()["counts"] == {"succeeded": 10_000, "failed": 0}
    assert {result["status"] for result in answer.json()["results"]} == {"recorded"}
    again = _give(logged_app, {"items": items})
    assert {result["status"] for result in again.json()["results"]} == {"unchanged"}
    assert time.perf_counter() - started < 20
    answer = _give(logged_app, {"items": [*items, items[0]]})
    assert (answer.status, answer.json()["code"]) == (413, "too_many_rows")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "required"),
        ([], "wrong_type"),
        ("canary", "wrong_type"),
        (None, "wrong_type"),
        ({"items": []}, "too_few_rows"),
        ({"items": {}}, "wrong_type"),
        ({"items": None}, "wrong_type"),
        ({"items": [], "canary": 1}, "unknown_field"),
        ({"items": [], "truth": 1}, "unknown_field"),
    ],
)
def test_a_body_of_another_form_is_refused(logged_app: InProcess, body: Any, code: str) -> None:
    """As a whole."""
    answer = _give(logged_app, body)
    assert answer.status == 422, answer.body
    assert answer.json()["errors"][0]["code"] == code
    assert "canary" not in answer.body.decode()


def _give(app: InProcess, body: Any) -> Answer:
    return app.request("POST", "/v2/feedback", body=json.dumps(body).encode())


def _regression() -> dict[str, Any]:
    return row(50_000, next(_numbers), model="double", output=1.5, label=None, probabilities=None, at=START)
