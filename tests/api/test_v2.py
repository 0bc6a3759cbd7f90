"""Version 2: any model, any version, and a batch in which every row has its own fate."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sklearn.naive_bayes import GaussianNB

from app.api.v2 import BatchOut, PredictionOut
from app.config import ModelSettings, Settings, StorageSettings
from app.training.options import Options
from app.training.publish import publish
from tests.support.asgi import OPEN, InProcess, in_process

IRIS = {"sepal length (cm)": 5.1, "sepal width (cm)": 3.5, "petal length (cm)": 1.4, "petal width (cm)": 0.2}


def test_a_classifier_answers_a_label_and_the_probability_of_each(app: InProcess) -> None:
    """The answer says by which model and version, under which id, and how long it took."""
    answer = app.request("POST", "/v2/predict/iris", json_body={"inputs": IRIS})
    assert answer.status == 200
    document = answer.json()
    PredictionOut.model_validate_json(answer.body, strict=True)
    assert (document["model"], document["version"], document["prediction"]) == ("iris", 1, "setosa")
    assert set(document["probabilities"]) == {"setosa", "versicolor", "virginica"}
    assert sum(document["probabilities"].values()) == pytest.approx(1)
    assert UUID(document["id"]).version == 7
    assert 0 < document["timing"]["model_ms"] <= document["timing"]["total_ms"]


def test_a_regression_answers_a_number(app: InProcess) -> None:
    """There are no probabilities, and so no member for them."""
    document = app.request("POST", "/v2/predict/double", json_body={"inputs": {"x": 7}}).json()
    assert document["prediction"] == pytest.approx(14, abs=0.2)
    assert "probabilities" not in document


@pytest.mark.parametrize(
    ("path", "query", "version"),
    [
        ("/v2/predict", "", 2),
        ("/v2/predict/sentiment", "", 2),
        ("/v2/predict/sentiment", "version=champion", 2),
        ("/v2/predict/sentiment", "version=v1", 1),
        ("/v2/predict/sentiment", "version=1", 1),
        ("/v2/predict", "version=2", 2),
    ],
)
def test_a_version_is_a_number_or_an_alias(app: InProcess, path: str, query: str, version: int) -> None:
    """Without one, the champion answers; without a model, the default."""
    answer = app.request("POST", path, json_body={"inputs": {"text": "fine"}}, query=query)
    assert (answer.json()["model"], answer.json()["version"]) == ("sentiment", version)


def test_a_bad_row_spoils_no_other(app: InProcess) -> None:
    """Each row has a prediction or an error in its place, and both are counted."""
    rows: list[Any] = [IRIS, {**IRIS, "petal width (cm)": "wide"}, IRIS, {}, None]
    answer = app.request("POST", "/v2/batch/iris", json_body={"inputs": rows})
    assert answer.status == 200
    document = answer.json()
    BatchOut.model_validate_json(answer.body, strict=True)
    assert document["counts"] == {"succeeded": 2, "failed": 3}
    assert [list(result) for result in document["results"]] == [
        ["id", "prediction", "probabilities"],
        ["error"],
        ["id", "prediction", "probabilities"],
        ["error"],
        ["error"],
    ]
    assert document["results"][1]["error"] == {
        "code": "wrong_type",
        "detail": "must be a number",
        "field": "petal width (cm)",
    }


def test_a_row_on_which_the_model_fails_spoils_no_other(app: InProcess) -> None:
    """The model raises for a batch with 13 in it; the rows beside it are answered."""
    answer = app.request("POST", "/v2/batch/brittle", json_body={"inputs": [{"x": x} for x in (1, 13, 12, 14, 2)]})
    assert answer.status == 200
    results = answer.json()["results"]
    assert [result.get("prediction") for result in results] == ["less", None, "more", None, "less"]
    assert results[3]["error"] == {"code": "model_failed", "detail": "the model failed on this row"}
    assert answer.json()["counts"] == {"succeeded": 3, "failed": 2}


def test_a_single_row_on_which_the_model_fails_is_a_500_without_the_exceptions_text(app: InProcess) -> None:
    """What the estimator said is in the log, not in the answer."""
    answer = app.request("POST", "/v2/predict/brittle", json_body={"inputs": {"x": 13}})
    assert (answer.status, answer.json()["code"]) == (500, "model_failed")
    assert "canary" not in answer.body.decode()


def test_a_batch_answers_what_single_calls_answer(app: InProcess) -> None:
    """Same rows, same labels, same probabilities to the last digits that arithmetic gives."""
    rows = [{**IRIS, "petal length (cm)": 1 + i / 10} for i in range(50)]
    batch = app.request("POST", "/v2/batch/iris", json_body={"inputs": rows}).json()["results"]
    for row, result in zip(rows, batch, strict=True):
        alone = app.request("POST", "/v2/predict/iris", json_body={"inputs": row}).json()
        assert alone["prediction"] == result["prediction"]
        assert alone["probabilities"] == pytest.approx(result["probabilities"], abs=1e-12)


def test_ten_thousand_rows_are_a_batch_and_one_more_is_not(app: InProcess) -> None:
    """The bound is on rows, and the refusal has a code of its own."""
    answer = app.request("POST", "/v2/batch/double", json_body={"inputs": [{"x": 1}] * 10_000})
    assert answer.json()["counts"] == {"succeeded": 10_000, "failed": 0}
    assert len({result["id"] for result in answer.json()["results"]}) == 10_000
    answer = app.request("POST", "/v2/batch/double", json_body={"inputs": [{"x": 1}] * 10_001})
    assert (answer.status, answer.json()["code"]) == (413, "too_many_rows")


def test_an_empty_batch_is_refused(app: InProcess) -> None:
    """A batch has at least one row."""
    answer = app.request("POST", "/v2/batch/iris", json_body={"inputs": []})
    assert (answer.status, answer.json()["errors"][0]["code"]) == (422, "too_few_rows")


def test_predictions_and_row_errors_are_counted(app: InProcess) -> None:
    """By model, version and label, or by model, version and code."""
    sample = app.app.services.metrics.registry.get_sample_value
    answered = ("presage_predictions_total", {"model": "iris", "version": "1", "label": "setosa"})
    refused = ("presage_row_errors_total", {"model": "iris", "version": "1", "code": "required"})
    before = (sample(*answered) or 0, sample(*refused) or 0)
    app.request("POST", "/v2/batch/iris", json_body={"inputs": [IRIS, IRIS, {}]})
    assert (sample(*answered), sample(*refused)) == (before[0] + 2, before[1] + 1)


def test_a_call_that_the_server_gives_up_is_answered_all_the_same(app: InProcess) -> None:
    """When the grace of a stop is over, callers get a problem document, and not a bare connection."""

    async def give_up() -> Any:
        call = asyncio.create_task(app.ask("POST", "/v2/predict/slow", {"inputs": {"x": 1.0}}))
        await asyncio.sleep(0.1)
        call.cancel()
        return await call

    answer = app.run(give_up())
    assert (answer.status, answer.json()["code"]) == (503, "not_ready")
    assert answer.header("retry-after") == "1"


def test_an_answer_is_bounded_by_rows_times_labels(tmp_path: Path) -> None:
    """A model of a thousand labels answers a thousand probabilities for each row."""
    labels = [f"label-{i:04}" for i in range(1_000)]
    numbers = np.arange(1_000.0).reshape(-1, 1)
    estimator = GaussianNB(var_smoothing=1.0).fit(numbers, labels)
    options = Options(field_names=("x",), models_dir=tmp_path)
    publish("many", estimator, numbers, labels, task="classification", options=options)
    models = ModelSettings(models_dir=tmp_path, default_model="many")
    storage = StorageSettings(log_policy="off")
    with in_process(Settings(auth=OPEN, models=models, storage=storage)) as started:
        answer = started.request("POST", "/v2/batch", json_body={"inputs": [{"x": 1}] * 1_001})
        assert (answer.status, answer.json()["code"], answer.json()["limit"]) == (413, "too_many_rows", 1_000)
        assert started.request("POST", "/v2/batch", json_body={"inputs": [{"x": 1}] * 10}).status == 200
