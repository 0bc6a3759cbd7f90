"""A hot route has two doors, the gate and FastAPI's own stack: both give the same answers and the same errors."""

import re
from typing import Any

import pytest

from app.api.exchange import SECURITY_HEADERS
from tests.support.asgi import Answer, InProcess

IRIS = {"sepal length (cm)": 5.1, "sepal width (cm)": 3.5, "petal length (cm)": 1.4, "petal width (cm)": 0.2}

REQUESTS: dict[str, dict[str, Any]] = {
    "v1": {"path": "/predict", "json_body": {"text": "I love this product"}},
    "v1 batch": {"path": "/v1/batch", "json_body": {"texts": ["I love this product", "It broke"]}},
    "v2": {"path": "/v2/predict", "json_body": {"inputs": {"text": "I love this product"}}},
    "v2 model": {"path": "/v2/predict/iris", "json_body": {"inputs": IRIS}},
    "v2 version": {"path": "/v2/predict/sentiment", "json_body": {"inputs": {"text": "fine"}}, "query": "version=1"},
    "v2 batch": {"path": "/v2/batch/iris", "json_body": {"inputs": [IRIS, {}, IRIS]}},
    "malformed": {"path": "/predict", "body": b'{"text": '},
    "invalid": {"path": "/predict", "json_body": {"text": 1}},
    "unknown model": {"path": "/v2/predict/nothing", "json_body": {"inputs": {}}},
    "unknown version": {"path": "/v2/predict", "json_body": {"inputs": {"text": "a"}}, "query": "version=77"},
    "unknown parameter": {"path": "/v2/predict", "json_body": {"inputs": {"text": "a"}}, "query": "verison=1"},
    "bad rows": {"path": "/batch-predict", "json_body": {"texts": ["", 1, "fine"]}},
    "wrong type": {"path": "/predict", "body": b"{}", "headers": [("content-type", "text/plain")]},
    "too large": {"path": "/predict", "body": b'{"text": "' + b"a" * 2_000_000 + b'"}'},
    "in pieces": {"path": "/predict", "body": [b'{"text": "I love', b' this product"}', b""]},
    "a template for a name": {"path": "/v2/predict/{model}", "json_body": {"inputs": {"text": "a"}}},
    "a method it does not take": {"method": "GET", "path": "/predict"},
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_both_doors_answer_alike(app: InProcess, request_: dict[str, Any]) -> None:
    """Status, headers and body are the same through either door, but for ids and times."""
    arguments = {"method": "POST", **request_}
    assert _comparable(app.request(**arguments, door="gate")) == _comparable(app.request(**arguments, door="framework"))


def test_both_doors_count_a_request_once(app: InProcess) -> None:
    """A prediction is one request in the metrics, whichever door it came through."""
    for door in ("gate", "framework"):
        before = _count(app)
        app.request("POST", "/predict", json_body={"text": "fine"}, door=door)
        assert _count(app) == before + 1


def _count(app: InProcess) -> float:
    labels = {"method": "POST", "handler": "/predict", "status": "200"}
    return app.app.services.metrics.registry.get_sample_value("http_requests_total", labels) or 0.0


def _comparable(answer: Answer) -> tuple[int, dict[str, str], str]:
    changing = {"x-request-id", "x-prediction-id", "content-length", "ratelimit"}
    changing |= {name.decode() for name, _ in SECURITY_HEADERS}  # which the gate adds to what the framework says
    headers = {name: value for name, value in answer.headers if name not in changing}
    identifiers = r'"(id|request_id)":"[^"]*"'
    times = r'"(model_ms|total_ms)":[0-9.]+'
    return answer.status, headers, re.sub(times, r'"\1":0', re.sub(identifiers, r'"\1":""', answer.body.decode()))
