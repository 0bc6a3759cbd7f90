"""More is asked than can be answered: who is answered, who is refused and told what, and that it heals."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from app.training.options import Options
from app.training.publish import publish
from tests.support.demo import MODULES
from tests.support.estimators import Plodding, Slow
from tests.support.outside import request, strict_json
from tests.support.raw import Caller, RawAnswer, post, send_raw
from tests.support.server import Server, running_server

TIMEOUT_SECONDS = 2.0
ROW_SECONDS = 0.05  # of `plodding`, as its estimator has it
ENVIRONMENT = {
    "MODEL_MODULES": MODULES,
    "DEFAULT_MODEL": "plodding",
    "LOG_FORMAT": "json",
    "REQUEST_TIMEOUT_MS": str(int(TIMEOUT_SECONDS * 1000)),
    "BATCH_TIMEOUT_MS": "20000",
}
FLOODER, NEIGHBOUR = "127.0.0.2", "127.0.0.3"
GONE = ("/v2/predict/{model}", "499")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plodding` takes the time that its warm-up took; `slow` as long as it is told."""
    root = tmp_path_factory.mktemp("models")
    instant = np.zeros((10, 1))
    options: Any = {"models_dir": root, "modules": (MODULES,), "field_names": ("x",)}
    for name, estimator in (("plodding", Plodding()), ("slow", Slow())):
        fitted = estimator.fit(instant, None)
        publish(name, fitted, instant, np.zeros(10), task="regression", options=Options(**options))
    return root


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that each test leaves with nothing to do."""
    with running_server(models, tmp_path_factory.mktemp("overload") / "log", ENVIRONMENT) as started:
        yield started


def test_what_cannot_be_in_time_is_refused_at_once_and_may_come_again_when_it_is_said(server: Server) -> None:
    """503 and `Retry-After`, within the time that a refusal takes; after so many seconds there is room."""
    with ThreadPoolExecutor(120) as pool:
        answers = list(pool.map(lambda _: _predict(server, "plodding", 1), range(120)))
        refused = [answer for answer in answers if answer.status != 200]
        assert {answer.status for answer in refused} == {503}
        assert {strict_json(answer)["code"] for answer in refused} == {"overloaded"}
        assert max(answer.seconds for answer in answers if answer.status == 200) < TIMEOUT_SECONDS
        # Most of what fits into the time is used.
        assert len(answers) - len(refused) > TIMEOUT_SECONDS / ROW_SECONDS / 2
        # And now a queue that a hasty caller's time is far too short for.
        waiting = [pool.submit(_predict, server, "plodding", 1) for _ in range(28)]
        _wait_until(lambda: _metric(server, 'presage_rows_waiting{model="plodding"') >= 24)
        hasty = _predict(server, "plodding", 1, "X-Request-Timeout-Ms: 300")
        assert (hasty.status, strict_json(hasty)["code"]) == (503, "overloaded")
        assert hasty.seconds < 0.25
        seconds = int(hasty.headers["retry-after"])
        assert 1 <= seconds <= 2
        again = time.monotonic() + seconds
        _wait_until(lambda: time.monotonic() >= again)
        assert _predict(server, "plodding", 1, "X-Request-Timeout-Ms: 300").status == 200
        assert {future.result().status for future in waiting} == {200}


def test_a_flood_is_its_callers_own_and_a_neighbour_goes_on_being_answered(server: Server) -> None:
    """429 `over_share` for who floods, 200 for who asks one after the other, and probes answer meanwhile."""
    over = Event()
    statuses: Counter[tuple[int, str]] = Counter()

    def flood() -> None:
        while not over.is_set():
            answer = _predict(server, "plodding", 1, address=FLOODER)
            code = "" if answer.status == 200 else strict_json(answer)["code"]
            statuses[answer.status, code] += 1
            assert answer.status in {200, 504} or int(answer.headers["retry-after"]) >= 1

    with ThreadPoolExecutor(60) as pool:
        flooding = [pool.submit(flood) for _ in range(60)]
        _wait_until(lambda: _metric(server, 'presage_rows_waiting{model="plodding"') >= 10)
        slowest, probes = 0.0, 0.0
        for _ in range(10):
            answer = _predict(server, "plodding", 1, address=NEIGHBOUR)
            assert answer.status == 200, answer.body
            slowest = max(slowest, answer.seconds)
            for path in ("/health/live", "/metrics"):
                probe = send_raw(server.port, request("GET", path))
                assert probe.status == 200
                probes = max(probes, probe.seconds)
        over.set()
        for future in flooding:
            future.result()
    # A turn that went to the neighbour is one for which the last in the flood's own queue are late.
    assert set(statuses) <= {(200, ""), (503, "overloaded"), (429, "over_share"), (504, "deadline_exceeded")}
    assert statuses[504, "deadline_exceeded"] < statuses[200, ""]
    assert statuses[200, ""] > 0
    assert statuses[429, "over_share"] > 0
    assert slowest < TIMEOUT_SECONDS / 2
    assert probes < 0.5
    _assert_healed(server, "plodding")


@pytest.mark.parametrize("path", ["/v2/predict/slow", "/v2/batch/slow"])
def test_the_time_for_an_answer_may_be_shortened(server: Server, path: str) -> None:
    """504 at the moment that the caller names, while the model is still at work."""
    row: Any = {"x": 1.5}
    answer = _ask(server, path, row if "predict" in path else [row], "X-Request-Timeout-Ms: 300")
    assert (answer.status, strict_json(answer)["code"]) == (504, "deadline_exceeded")
    assert 0.25 < answer.seconds < 1
    _assert_healed(server, "slow")


def test_the_time_for_an_answer_may_not_be_lengthened(server: Server) -> None:
    """Whatever a caller asks for, the setting holds."""
    answer = _ask(server, "/v2/predict/slow", {"x": 3}, "X-Request-Timeout-Ms: 600000")
    assert answer.status == 504
    assert TIMEOUT_SECONDS - 0.1 < answer.seconds < TIMEOUT_SECONDS + 0.9
    _assert_healed(server, "slow")


def test_a_model_that_takes_longer_than_there_is_time_is_not_asked(server: Server) -> None:
    """A 504 at once, which costs the model nothing."""
    before = _metric(server, 'presage_call_rows_sum{model="plodding"')
    answer = _predict(server, "plodding", 1, "X-Request-Timeout-Ms: 20")
    assert (answer.status, strict_json(answer)["code"]) == (504, "deadline_exceeded")
    assert answer.seconds < ROW_SECONDS
    assert _metric(server, 'presage_call_rows_sum{model="plodding"') == before


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "", "1e3", "+5", "9999999999", "\xb2"])
@pytest.mark.parametrize("path", ["/v2/predict/plodding", "/v2/batch", "/v2/batch/plodding", "/predict", "/v1/batch"])
def test_a_time_that_is_none_is_refused_before_the_body_is_read(server: Server, path: str, value: str) -> None:
    """422, which names the header; nothing of the body has been sent."""
    answer = send_raw(server.port, post(path, b"", "Content-Length: 60", f"X-Request-Timeout-Ms: {value}"))
    assert answer.status == 422
    assert b"X-Request-Timeout-Ms" in answer.body


def test_who_goes_away_while_waiting_costs_the_model_nothing(server: Server) -> None:
    """A hundred callers close their connections behind one who is being worked for; the next is answered at once."""
    before = _metric(server, 'presage_call_rows_sum{model="slow"')
    gone = _counted(server, *GONE)
    with Caller(server.port) as first, ExitStack() as stack:
        first.send(post("/v2/predict/slow", b'{"inputs":{"x":1.5}}'))
        _wait_until(lambda: _metric(server, 'presage_rows_waiting{model="slow"') == 1)
        for _ in range(100):
            caller = stack.enter_context(Caller(server.port))
            caller.send(post("/v2/predict/slow", b'{"inputs":{"x":4}}', "X-Request-Timeout-Ms: 1900"))
        _wait_until(lambda: _metric(server, 'presage_rows_waiting{model="slow"') == 101)
        stack.close()
        last = _predict(server, "slow", 0)
        assert (last.status, first.read().status) == (200, 200)
    assert last.seconds < 1.8
    assert _metric(server, 'presage_call_rows_sum{model="slow"') - before == 2
    _wait_until(lambda: _counted(server, *GONE) == gone + 100)
    _assert_healed(server, "slow")


def test_a_batch_whose_caller_has_gone_is_not_worked_off(server: Server) -> None:
    """Of ten seconds of work, what was begun when the connection closed is done and no more."""
    before = _metric(server, 'presage_call_rows_sum{model="plodding"')
    with Caller(server.port) as caller:
        rows = ",".join(['{"x":1}'] * 200)
        caller.send(post("/v2/batch/plodding", b'{"inputs":[%s]}' % rows.encode()))
        _wait_until(lambda: _metric(server, 'presage_rows_waiting{model="plodding"') > 100)
    assert _predict(server, "plodding", 1).status == 200
    _assert_healed(server, "plodding")
    assert _metric(server, 'presage_call_rows_sum{model="plodding"') - before < 50


def test_single_rows_go_before_a_batch(server: Server) -> None:
    """While somebody's batch takes ten seconds, others are answered within a fraction of one; and it is, too."""
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(_ask, server, "/v2/batch/plodding", [{"x": i} for i in range(100)], address=FLOODER)
        _wait_until(lambda: _metric(server, 'presage_rows_waiting{model="plodding"') > 50)
        for _ in range(5):
            answer = _predict(server, "plodding", 1, address=NEIGHBOUR)
            assert (answer.status, answer.seconds < 1) == (200, True)
        assert not batch.done()
        results = strict_json(batch.result())["results"]
    assert [result["prediction"] for result in results] == [float(i) for i in range(100)]


def test_a_server_that_is_asked_to_stop_answers_what_it_has_let_in(models: Path, tmp_path: Path) -> None:
    """Those that still wait in a queue, too: nobody who was let in hears of the stop."""
    with running_server(models, tmp_path / "log", ENVIRONMENT) as server, ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(_predict, server, "plodding", 1) for _ in range(20)]
        _wait_until(lambda: _metric(server, 'presage_rows_waiting{model="plodding"') >= 15)
        assert server.stop() == 0
        assert [future.result().status for future in waiting] == [200] * 20


def _ask(server: Server, path: str, inputs: Any, *headers: str, address: str = "127.0.0.1") -> RawAnswer:
    body = repr({"inputs": inputs}).replace("'", '"').encode()
    with Caller(server.port, address=address, timeout=60) as caller:
        caller.send(post(path, body, *headers))
        return caller.read()


def _predict(server: Server, model: str, x: float, *headers: str, address: str = "127.0.0.1") -> RawAnswer:
    return _ask(server, f"/v2/predict/{model}", {"x": x}, *headers, address=address)


def _metric(server: Server, beginning: str) -> float:
    """The value of the one sample that begins so; 0 before there is one."""
    lines = send_raw(server.port, request("GET", "/metrics")).body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(beginning))


def _counted(server: Server, handler: str, status: str) -> float:
    return _metric(server, f'http_requests_total{{handler="{handler}",method="POST",status="{status}"}}')


def _assert_healed(server: Server, model: str) -> None:
    """Nothing waits any more, and whoever asks now is answered."""
    _wait_until(lambda: _metric(server, f'presage_rows_waiting{{model="{model}"') == 0)
    assert _predict(server, model, 0).status == 200


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
