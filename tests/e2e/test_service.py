"""The real server over a socket: what a caller, an operator and a prober see."""

import threading
import time
from pathlib import Path

import pytest

from tests.support.raw import chunked, post, send_raw
from tests.support.server import Server, running_server
from tests.support.versions import write_classifier

TEXT = b'{"text": "I love this product"}'


def test_a_text_gets_its_sentiment(server: Server) -> None:
    """The first call of the first contract, over a socket."""
    with server.client() as client:
        answer = client.post("/predict", json={"text": "I love this product"})
    assert answer.status_code == 200
    assert answer.json() == {"sentiment": "positive"}
    assert answer.headers["x-model-version"] == "1"
    assert "server" not in answer.headers


def test_one_connection_carries_many_requests(server: Server) -> None:
    """Good ones, refused ones and cold ones leave the connection open."""
    with server.client() as client:
        for _ in range(3):
            assert client.post("/predict", json={"text": "fine"}).status_code == 200
            assert client.post("/predict", json={"text": 1}).status_code == 422
            assert client.post("/predict", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
            answer = client.get("/v2/catalog")
            assert answer.status_code == 200
            assert answer.headers.get("connection") != "close"


def test_a_body_in_chunks_is_read_to_its_end(server: Server) -> None:
    """Transfer coding is the server's business."""
    body = chunked(b'{"text": "I lo', b"ve this", b' product"}')
    answer = send_raw(server.port, post("/predict", body, "Transfer-Encoding: chunked"))
    assert (answer.status, answer.body) == (200, b'{"sentiment":"positive"}')


@pytest.mark.parametrize("path", ["/predict", "/v2/batch", "/nothing", "/health/live"])
def test_a_large_body_is_refused_before_it_is_read(server: Server, path: str) -> None:
    """100 MB announced are refused by the announcement: nothing of the body has been sent yet."""
    head = post(path, b"", "Content-Length: 104857600")
    answer = send_raw(server.port, head)
    assert answer.status == 413
    assert b'"code":"body_too_large"' in answer.body
    assert answer.headers["connection"] == "close"


def test_a_large_body_of_unknown_length_is_refused_once_it_is_too_large(server: Server) -> None:
    """Chunks are counted; what still comes is thrown away, so that the caller reads the answer."""
    chunks = [b" " * 65_536] * 48
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    before = _resident_bytes(server)
    for _ in range(5):
        answer = send_raw(server.port, post("/predict", body, "Transfer-Encoding: chunked"))
        assert answer.status == 413
    assert _resident_bytes(server) - before < 8 << 20


def test_a_cold_body_of_unknown_length_has_a_bound_too(server: Server) -> None:
    """The caller reads the refusal, though more than the bound was still to come."""
    body = chunked(*[b" " * 65_536] * 300)
    answer = send_raw(server.port, post("/v2/feedback", body, "Transfer-Encoding: chunked"))
    assert answer.status == 413
    assert b'"code":"body_too_large"' in answer.body
    assert answer.headers["connection"] == "close"
    assert answer.seconds < 5


def test_a_client_that_waits_for_continue_never_sends_a_large_body(server: Server) -> None:
    """With `Expect: 100-continue` the refusal comes instead of the permission."""
    head = post("/predict", b"", "Content-Length: 50000000", "Expect: 100-continue")
    assert send_raw(server.port, head).status == 413


@pytest.mark.parametrize("path", ["/health/live", "/predict", "/nothing"])
def test_a_large_cookie_costs_nothing(server: Server, path: str) -> None:
    """30 KB of backslashes take some Pythons seconds to parse; nothing here parses cookies."""
    cookie = 'Cookie: a="' + "\\" * 30_000 + '"'
    get = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{cookie}\r\n\r\n".encode()
    answer = send_raw(server.port, post(path, TEXT, cookie) if path == "/predict" else get)
    assert answer.status in (200, 404)
    assert answer.seconds < 0.5


def test_liveness_answers_while_a_model_works_for_four_seconds(server: Server) -> None:
    """The loop turns, other models answer, and the slow call comes to its end."""
    statuses: list[int] = []

    def work() -> None:
        with server.client() as client:
            statuses.append(client.post("/v2/predict/slow", json={"inputs": {"x": 4.0}}).status_code)

    thread = threading.Thread(target=work)
    thread.start()
    slowest = 0.0
    with server.client() as client:
        while thread.is_alive():
            started = time.perf_counter()
            assert client.get("/health/live").status_code == 200
            slowest = max(slowest, time.perf_counter() - started)
            assert client.post("/predict", json={"text": "fine"}).status_code == 200
            thread.join(0.05)
    assert statuses == [200]
    assert slowest < 1


def test_every_failure_and_every_cold_request_is_one_log_line(server: Server) -> None:
    """JSON objects, found again by the request's id."""
    with server.client() as client:
        client.get("/health/live", headers={"x-request-id": "cold-1"})
        client.post("/predict", json={"text": 1}, headers={"x-request-id": "refused-1"})
        client.post("/v2/predict/brittle", json={"inputs": {"x": 13}}, headers={"x-request-id": "failed-1"})
        client.get("/nothing%0d%0a%1b%5B31m\u00e9", headers={"x-request-id": "odd-1"})
    cold = server.wait_for_event("http_request", request_id="cold-1")
    assert (cold["method"], cold["path"], cold["status"]) == ("GET", "/health/live", 200)
    refused = server.wait_for_event("request_refused", request_id="refused-1")
    assert (refused["handler"], refused["status"], refused["code"]) == ("/predict", 422, "invalid_input")
    failed = server.wait_for_event("request_failed", request_id="failed-1")
    assert (failed["level"], failed["status"], failed["code"]) == ("error", 500, "model_failed")
    odd = server.wait_for_event("http_request", request_id="odd-1")
    assert odd["path"] == "/nothing%0d%0a%1b%5B31m%C3%A9"
    for identifier in ("cold-1", "refused-1", "failed-1", "odd-1"):
        assert server.output().count(identifier) == 1


def test_a_good_prediction_writes_no_log_line(server: Server) -> None:
    """At full speed, lines would cost more than predictions."""
    with server.client() as client:
        client.post("/predict", json={"text": "fine"}, headers={"x-request-id": "good-1"})
        client.get("/health/live", headers={"x-request-id": "after-good-1"})
    server.wait_for_event("http_request", request_id="after-good-1")
    assert '"good-1"' not in server.output()


def test_the_metrics_have_predictions_requests_and_models(server: Server) -> None:
    """With buckets from a quarter of a millisecond, and in the text format that Prometheus reads."""
    with server.client() as client:
        client.post("/predict", json={"text": "I love this"})
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    for line in (
        'presage_predictions_total{label="positive",model="sentiment",version="1"} ',
        'http_requests_total{handler="/predict",method="POST",status="200"} ',
        'http_request_duration_seconds_bucket{handler="/predict",le="0.00025",method="POST"} ',
        'presage_model_serving{model="iris",version="1"} 1.0',
        "presage_ready 1.0",
        "process_resident_memory_bytes ",
    ):
        assert line in answer.text


def test_ready_names_every_version_that_is_served(server: Server) -> None:
    """By model, version and state."""
    answer = server.wait_for("/health/ready", 200)
    assert {"model": "sentiment", "version": 2, "state": "serving", "required": True} in answer.json()["models"]
    assert {"model": "iris", "version": 1, "state": "serving", "required": False} in answer.json()["models"]


def test_health_answers_head_requests(server: Server) -> None:
    """Some probers send nothing else."""
    with server.client() as client:
        for path in ("/health/live", "/health/ready"):
            answer = client.head(path)
            assert (answer.status_code, answer.content) == (200, b"")


def test_a_refused_version_is_reported_and_the_rest_is_served(tmp_path: Path) -> None:
    """One log line, its reason in the ready answer, 503 for those who ask for it."""
    write_classifier(tmp_path / "models", name="good")
    write_classifier(tmp_path / "models", name="broken")
    (tmp_path / "models/broken/1/model.joblib").write_bytes(b"damaged")
    environment = {"DEFAULT_MODEL": "good", "LOG_FORMAT": "json"}
    with running_server(tmp_path / "models", tmp_path / "log", environment) as server, server.client() as client:
        health = {entry["model"]: entry for entry in client.get("/health/ready").json()["models"]}
        assert health["broken"]["state"] == "refused"
        assert health["broken"]["reason"] == "digest_mismatch"
        assert client.post("/v2/predict", json={"inputs": {"x": 1}}).json()["prediction"] == "small"
        refused = client.post("/v2/predict/broken", json={"inputs": {"x": 1}})
        assert (refused.status_code, refused.json()["code"]) == (503, "model_not_serving")
        assert refused.headers["retry-after"] == "30"
        assert len(server.events("model_refused")) == 1


def test_a_required_model_that_is_refused_keeps_the_service_from_being_ready(tmp_path: Path) -> None:
    """503 with the reason, for as long as it takes; liveness is untouched."""
    write_classifier(tmp_path / "models", name="broken")
    (tmp_path / "models/broken/1/manifest.json").write_text("{}")
    environment = {"DEFAULT_MODEL": "broken", "LOG_FORMAT": "json"}
    with running_server(tmp_path / "models", tmp_path / "log", environment, wait=False) as server:
        answer = server.wait_for("/health/ready", 503)
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) >= 1
        deadline = time.monotonic() + 30
        while answer.json()["models"][0]["state"] == "loading" and time.monotonic() < deadline:
            answer = server.wait_for("/health/ready", 503)
        assert answer.json()["models"][0]["reason"] == "manifest_invalid"
        assert server.wait_for("/health/live", 200).json() == {"status": "live"}


def test_a_server_that_is_asked_to_stop_finishes_what_it_does_and_ends_well(models_dir: Path, tmp_path: Path) -> None:
    """A request in flight is answered; the exit code is 0."""
    environment = {"MODEL_MODULES": "tests.support.estimators", "LOG_FORMAT": "json"}
    with running_server(models_dir, tmp_path / "log", environment) as server:
        statuses: list[int] = []

        def work() -> None:
            with server.client() as client:
                statuses.append(client.post("/v2/predict/slow", json={"inputs": {"x": 1.0}}).status_code)

        thread = threading.Thread(target=work)
        thread.start()
        _wait_until_working(server)
        assert server.stop() == 0
        thread.join()
        assert statuses == [200]


def _wait_until_working(server: Server) -> None:
    """Until the metrics say that a call is on the slow model's thread."""
    deadline = time.monotonic() + 10
    with server.client() as client:
        while 'presage_rows_waiting{model="slow",version="1"} 1.0' not in client.get("/metrics").text:
            assert time.monotonic() < deadline


def _resident_bytes(server: Server) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * 4096
