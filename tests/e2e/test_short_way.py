"""A request whose head has come before takes a shorter way, and nobody can tell but by a clock."""

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.raw import Caller, RawAnswer, post
from tests.support.server import Server, running_server
from tests.support.tokens import SECRET, token

IRIS = {"sepal length (cm)": 5.1, "sepal width (cm)": 3.5, "petal length (cm)": 1.4, "petal width (cm)": 0.2}
REQUESTS: dict[str, tuple[str, Any]] = {
    "v1": ("/predict", {"text": "I love this product"}),
    "v2": ("/v2/predict", {"inputs": {"text": "I love this product"}}),
    "v2 model": ("/v2/predict/iris", {"inputs": IRIS}),
    "v2 version": ("/v2/predict/sentiment?version=1", {"inputs": {"text": "fine"}}),
    "invalid": ("/predict", {"text": 1}),
    "a field too many": ("/v2/predict/iris", {"inputs": {**IRIS, "more": 1}}),
    "unknown model": ("/v2/predict/nothing", {"inputs": {}}),
    "unknown version": ("/v2/predict?version=77", {"inputs": {"text": "a"}}),
    "unknown parameter": ("/v2/predict?verison=1", {"inputs": {"text": "a"}}),
    "a row that the model fails on": ("/v2/predict/brittle", {"inputs": {"x": 13}}),
    "batch": ("/v2/batch/iris", {"inputs": [IRIS, {}]}),
    "too large": ("/predict", {"text": "a" * 2_000_000}),
}
BEARER = f"Authorization: Bearer {token(scope='predict', exp=4_000_000_000).decode()}"


@pytest.fixture(scope="module")
def server(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It asks for tokens."""
    environment = {
        "AUTH_MODE": "jwt",
        "JWT_SECRET": SECRET,
        "MODEL_MODULES": "tests.support.estimators",
        "LOG_FORMAT": "json",
    }
    log = tmp_path_factory.mktemp("short") / "log"
    with running_server(models_dir, log, environment, arguments=["--migrate"]) as started:
        yield started


@pytest.mark.parametrize(("path", "document"), REQUESTS.values(), ids=REQUESTS)
def test_the_second_answer_is_as_the_first(server: Server, path: str, document: Any) -> None:
    """Status, headers and body, but for ids, times and what is left of the plan; on another connection, too."""
    request = post(path, json.dumps(document).encode(), BEARER)
    answers = []
    for _ in range(2):
        with Caller(server.port) as caller:
            for _ in range(2):
                caller.send(request)
                answers.append(caller.read())
                if answers[-1].headers.get("connection") == "close":
                    break
    assert len({_comparable(answer) for answer in answers}) == 1
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


@pytest.mark.parametrize(
    ("header", "status"),
    [("X-Nothing: said", 401), (f"Authorization: Bearer {token(scope='read').decode()}", 403), (BEARER, 200)],
)
def test_a_head_that_is_known_opens_nothing(server: Server, header: str, status: int) -> None:
    """Who may is asked each time."""
    request = post("/predict", b'{"text": "I love this product"}', header)
    with Caller(server.port) as caller:
        for _ in range(3):
            caller.send(request)
            assert caller.read().status == status


def test_what_the_short_way_answers_is_counted_and_on_record(server: Server) -> None:
    """Each request once, with its prediction readable under the id that was answered."""
    reader = f"Authorization: Bearer {token(scope='predict read', exp=4_000_000_000).decode()}"
    request = post("/v1/predict", b'{"text": "counted"}', reader)
    before = _count(server)
    with Caller(server.port) as caller:
        found = []
        for _ in range(5):
            caller.send(request)
            found.append(caller.read().headers["x-prediction-id"])
    assert _count(server) == before + 5
    assert len(set(found)) == 5
    with server.client() as client:
        name, _, value = reader.partition(": ")
        deadline = time.monotonic() + 10
        while (answer := client.get(f"/v2/predictions/{found[-1]}", headers={name: value})).status_code != 200:
            assert time.monotonic() < deadline, answer.text
        assert answer.json()["inputs"] == {"text": "counted"}


def test_a_server_that_is_asked_to_stop_answers_what_took_the_short_way(models_dir: Path, tmp_path: Path) -> None:
    """Though no task waits for it."""
    environment = {"MODEL_MODULES": "tests.support.estimators", "LOG_FORMAT": "json"}
    with running_server(models_dir, tmp_path / "log", environment) as server, Caller(server.port) as caller:
        request = post("/v2/predict/slow", b'{"inputs": {"x": 0.00}}')
        caller.send(request)
        assert caller.read().status == 200
        caller.send(request.replace(b"0.00", b"1.00"))  # the same head
        working = 'presage_rows_waiting{model="slow",version="1"} 1.0'
        with server.client() as client:
            deadline = time.monotonic() + 10
            while working not in client.get("/metrics").text:
                assert time.monotonic() < deadline
        server.process.send_signal(signal.SIGTERM)
        answer = caller.read()
        assert (answer.status, json.loads(answer.body)["prediction"]) == (200, 1.0)
        assert server.process.wait(30) == 0


def test_many_connections_with_one_head_get_each_its_own_answer(server: Server) -> None:
    """However they come together."""
    wrong: list[str] = []

    def ask(number: int) -> None:
        with Caller(server.port) as caller:
            for turn in range(50):
                wanted = 1000 + number * 50 + turn
                caller.send(post("/v2/predict/double", b'{"inputs": {"x": %d}}' % wanted, BEARER))
                found = json.loads(caller.read().body)["prediction"]
                if abs(found - slope * wanted - start) > slope / 10:
                    wrong.append(f"{wanted}: {found}")

    with Caller(server.port) as caller:
        ends = []
        for number in (0, 1000):
            caller.send(post("/v2/predict/double", b'{"inputs": {"x": %d}}' % number, BEARER))
            ends.append(json.loads(caller.read().body)["prediction"])
    start, slope = ends[0], (ends[1] - ends[0]) / 1000  # a straight line

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def _comparable(answer: RawAnswer) -> tuple[int, str, str]:
    changing = {"x-request-id", "x-prediction-id", "ratelimit", "date", "content-length"}
    headers = sorted((name, value) for name, value in answer.headers.items() if name not in changing)
    body = re.sub(r'"(id|request_id)":"[^"]*"', r'"\1":""', answer.body.decode())
    return answer.status, str(headers), re.sub(r'"(model_ms|total_ms)":[0-9.e-]+', r'"\1":0', body)


def _count(server: Server) -> int:
    with server.client() as client:
        found = re.search(
            r'http_requests_total\{handler="/v1/predict",method="POST",status="200"\} ([0-9.]+)',
            client.get("/metrics").text,
        )
    return int(float(found[1])) if found else 0
