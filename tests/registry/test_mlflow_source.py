"""MLflow's server, as a model is asked for: what it answers, and every way in which it does not."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr

from app.config import PublishingSettings
from app.errors import InvalidSettings, PublishRefused
from app.registry.errands import silent
from app.registry.mlflow_source import MlflowSource, is_followed
from tests.support.server import free_port


class _Registry(BaseHTTPRequestHandler):
    """Knows one alias of one model."""

    def do_GET(self) -> None:
        known = "alias=champion" in self.path
        version = {"name": "flowers", "version": "3", "run_id": "r1", "description": "Which flower is it?"}
        unknown = {"error_code": "INVALID_PARAMETER_VALUE", "message": "Registered model alias\n none not found."}
        body = json.dumps({"model_version": version} if known else unknown).encode()
        self.send_response(200 if known else 400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quietly."""


@pytest.fixture
def registry() -> Iterator[str]:
    """Its address, with credentials."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://me:hunter2@127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def _silence() -> Iterator[str]:
    """The address of somebody who takes connections, and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(10)
        yield f"http://me:hunter2@127.0.0.1:{listener.getsockname()[1]}"


def _source(uri: str, **more: Any) -> MlflowSource:
    return MlflowSource(PublishingSettings(mlflow_tracking_uri=SecretStr(uri), **{"mlflow_seconds": 1, **more}))


def test_a_name_stands_for_a_version(registry: str) -> None:
    """Whose origin has no credentials; one process answers again and again, also after it had to say no."""
    with _source(registry) as source:
        with pytest.raises(PublishRefused, match=r"@none: INVALID_PARAMETER_VALUE: Registered model alias none"):
            source.resolve("models:/flowers@none", silent)
        found = source.resolve("models:/flowers@champion", silent)
    assert found.uri == "models:/flowers/3"
    assert found.description == "Which flower is it?"
    assert found.origin == f"models:/flowers/3 at {registry.replace('me:hunter2@', '')}, run r1"


def test_a_server_that_is_not_there_is_one_line() -> None:
    """Soon, and without the credentials that were meant for it."""
    port = free_port()
    with _source(f"http://me:hunter2@127.0.0.1:{port}") as source, pytest.raises(PublishRefused) as refusal:
        source.resolve("models:/flowers@champion", silent)
    assert str(refusal.value) == f"models:/flowers@champion: http://127.0.0.1:{port} cannot be reached"


def test_a_server_that_does_not_answer_is_given_up() -> None:
    """After MLFLOW_SECONDS, twice."""
    started = time.monotonic()
    late = pytest.raises(PublishRefused, match="does not answer in time")
    with _silence() as uri, _source(uri) as source, late as told:
        source.resolve("models:/flowers@champion", silent)
    assert "hunter2" not in str(told.value)
    assert time.monotonic() - started < 30


def test_whatever_its_client_does_there_is_an_end() -> None:
    """The process that asks may take PUBLISH_SECONDS, and is ended then."""
    patient: Any = {"mlflow_seconds": 600, "publish_seconds": 1}
    with _silence() as uri, _source(uri, **patient) as source:
        with pytest.raises(PublishRefused, match=r"not done within 1 s \(PUBLISH_SECONDS\)"):
            source.resolve("models:/flowers@champion", silent)
        with pytest.raises(PublishRefused, match="not done within"):
            source.resolve("models:/flowers@champion", silent)


def test_what_can_be_followed() -> None:
    """Only an alias may become another version."""
    assert is_followed("models:/flowers@champion")
    assert not is_followed("models:/flowers/3")
    assert not is_followed("runs:/r1/model")


def test_what_names_nothing() -> None:
    """An address in no form of MLflow's, and no server to ask."""
    with _source("http://127.0.0.1:1") as source, pytest.raises(PublishRefused, match="is none of models:/NAME@ALIAS"):
        source.resolve("models:/flowers", silent)
    with pytest.raises(InvalidSettings, match="MLFLOW_TRACKING_URI"):
        _source("")
