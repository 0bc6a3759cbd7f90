"""Version 1 is frozen: these are its shapes, to the letter."""

from uuid import UUID

import pytest

from tests.support.asgi import InProcess


@pytest.mark.parametrize("path", ["/predict", "/v1/predict"])
def test_a_text_gets_its_sentiment(app: InProcess, path: str) -> None:
    """One member in, one member out, and the headers say which prediction by which version."""
    answer = app.request("POST", path, json_body={"text": "I love this product"})
    assert answer.status == 200
    assert answer.body == b'{"sentiment":"positive"}'
    assert answer.header("content-type") == "application/json"
    assert answer.header("x-model-version") == "1"
    assert UUID(answer.header("x-prediction-id")).version == 7


@pytest.mark.parametrize("path", ["/batch-predict", "/v1/batch"])
def test_texts_get_their_sentiments_in_order(app: InProcess, path: str) -> None:
    """A list in, a list out."""
    answer = app.request("POST", path, json_body={"texts": ["I love this", "it broke at once", "very happy"]})
    assert answer.status == 200
    assert answer.body == b'{"results":["positive","negative","positive"]}'
    assert answer.header("x-model-version") == "1"


def test_one_bad_text_refuses_the_batch_and_every_bad_one_is_named(app: InProcess) -> None:
    """Nothing is predicted; the caller learns all positions at once."""
    answer = app.request("POST", "/v1/batch", json_body={"texts": ["fine", "", 3, "fine", " "]})
    assert answer.status == 422
    problem = answer.json()
    assert problem["code"] == "invalid_input"
    assert problem["bad_rows"] == [1, 2, 4]
    assert [(error["row"], error["code"]) for error in problem["errors"]] == [
        (1, "empty"),
        (2, "wrong_type"),
        (4, "empty"),
    ]
    assert answer.header("x-prediction-id") is None


@pytest.mark.parametrize("path", ["/predict", "/v1/batch"])
def test_a_query_is_refused(app: InProcess, path: str) -> None:
    """There is one version behind this contract, and asking for another would be ignored."""
    answer = app.request("POST", path, json_body={"text": "fine", "texts": ["fine"]}, query="version=2")
    assert answer.status == 422
