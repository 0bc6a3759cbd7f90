"""Secrets stay secret: what is planted in settings, credentials and bodies comes out nowhere, whatever goes wrong.

And every answer there is, of whatever status and maker, tells a browser and a cache to do nothing with it.
"""

import base64
import contextlib
import json
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import pytest
from pydantic import SecretStr

from app.auth.clients import Clients
from app.config import StorageSettings, read_settings
from app.storage.database import Database
from app.storage.migrations import upgrade
from tests.support.demo import MODULES
from tests.support.outside import assert_safe, bearer, request
from tests.support.raw import RawAnswer, post, send_raw
from tests.support.server import ROOT, Server, clean_environment, free_port, running_server
from tests.support.tokens import SECRET, token

PAGE = "https://app.example.com"
MOST_CONNECTIONS = 32


def planted(what: str) -> str:
    """A secret that can be recognised wherever it turns up."""
    return f"planted-{what}-{secrets.token_hex(8)}"


@dataclass
class Watched:
    """A server with secrets in it, and everything that it has answered."""

    server: Server
    secrets: dict[str, str]
    answers: list[RawAnswer] = field(default_factory=list)

    def ask(self, sent: bytes) -> RawAnswer:
        """One answer, kept."""
        answer = send_raw(self.server.port, sent)
        self.answers.append(answer)
        return answer

    def expect(self, status: int, *requests: bytes) -> None:
        """The answers to these have that status."""
        statuses = [self.ask(sent).status for sent in requests]
        assert statuses == [status] * len(requests)

    def everything(self) -> dict[str, str]:
        """All that anybody may see of it."""
        pages = {path: repr(send_raw(self.server.port, request("GET", path))) for path in ("/metrics", "/openapi.json")}
        command = Path(f"/proc/{self.server.process.pid}/cmdline").read_text()
        return {**pages, "an answer": repr(self.answers), "the log": self.server.output(), "the command line": command}

    def assert_tight(self, *more: str) -> None:
        """None of the secrets, nor of these, has come out."""
        for place, text in self.everything().items():
            found = [what for what in (*self.secrets.values(), *more) if what in text]
            assert not found, f"{found} stands in {place}"


ENVIRONMENT = {
    "AUTH_MODE": "jwt",
    "JWT_SECRET": SECRET,
    "MODEL_MODULES": MODULES,
    "LOG_FORMAT": "json",
    "LOG_LEVEL": "debug",
    "CORS_ORIGINS": PAGE,
    "ALLOWED_HOSTS": "localhost",
    "HEADER_SECONDS": "0.5",
    "MAX_CONNECTIONS_PER_ADDRESS": str(MOST_CONNECTIONS),
}


@pytest.fixture(scope="module")
def watched(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One whose database is there, with a client, a user and a key in it."""
    folder = tmp_path_factory.mktemp("watched")
    storage = StorageSettings(database_url=SecretStr(f"sqlite:///{folder}/presage.db"))
    upgrade(storage)
    password = planted("password")
    with Database(storage) as database:
        clients = Clients(database)
        secret = clients.add("service", by="test")
        clients.add("person", by="test", kind="user", secret=password)
        clients.add("slow", by="test", plan="1/day")
        key = clients.add_key("service", by="test")
    inside = {"jwt": SECRET, "hash": planted("hash-key"), "client": secret, "password": password, "key": key}
    with running_server(models_dir, folder / "log", {**ENVIRONMENT, "LOG_HASH_KEY": inside["hash"]}) as server:
        yield Watched(server, inside)


@pytest.fixture(scope="module")
def cut_off(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One whose database and Redis cannot be reached."""
    inside = {"jwt": SECRET, "database": planted("database"), "redis": planted("redis")}
    addresses = {
        "DATABASE_URL": f"postgresql://presage:{inside['database']}@127.0.0.1:{free_port()}/presage",
        "REDIS_URL": f"redis://presage:{inside['redis']}@127.0.0.1:{free_port()}/0",
    }
    folder = tmp_path_factory.mktemp("cut-off")
    with running_server(models_dir, folder / "log", {**ENVIRONMENT, **addresses}) as server:
        yield Watched(server, inside)


def _form(*headers: str, **fields: str) -> bytes:
    """A request for a token."""
    body = urlencode(fields).encode()
    form = "Content-Type: application/x-www-form-urlencoded"
    return post("/auth/token", body, *headers, f"Content-Length: {len(body)}").replace(
        b"Content-Type: application/json", form.encode()
    )


def _basic(name: str, secret: str) -> str:
    return f"Authorization: Basic {base64.b64encode(f'{name}:{secret}'.encode()).decode()}"


def test_credentials_come_out_nowhere(watched: Watched) -> None:
    """Right or wrong, wherever they stood in the request."""
    wrong, right = planted("wrong"), token(jti=planted("token")).decode()
    forged = token(secret=planted("other-secret")).decode()
    text = b'{"text": "fine"}'
    grant = {"grant_type": "client_credentials"}
    watched.expect(
        401,
        _form(_basic("service", wrong), **grant),
        _form(client_id="service", client_secret=wrong, **grant),
        _form(_basic(wrong, wrong), **grant),
        post("/predict", text, f"Authorization: Bearer {forged}"),
        post("/predict", text, f"Authorization: {wrong}"),
        post("/predict", text, f"X-API-Key: {wrong}"),
        post("/predict", text, f"X-API-Key: {watched.secrets['key']}x"),
        post("/predict", text, _basic("service", watched.secrets["client"])),
    )
    watched.expect(
        400,
        _form(grant_type="password", username="person", password=wrong),
        _form(grant_type="password", username="service", password=watched.secrets["client"]),
        _form(grant_type=wrong, client_id="service", client_secret=wrong),
        _form(_basic("service", wrong), client_id="service", client_secret=wrong, **grant),
        _form(client_id="service", client_secret=watched.secrets["client"], scope=wrong, **grant),
        post("/auth/token", json.dumps({"client_secret": wrong}).encode()),
    )
    watched.expect(422, post("/predict", json.dumps({"text": 1, "token": wrong}).encode(), bearer()))
    issued = _issue(watched, _form(_basic("service", watched.secrets["client"]), **grant))
    _issue(watched, _form(grant_type="password", username="person", password=watched.secrets["password"]))
    assert send_raw(watched.server.port, post("/predict", text, f"Authorization: Bearer {issued}")).status == 200
    assert watched.ask(post("/predict", text, f"X-API-Key: {watched.secrets['key']}")).status == 200
    watched.assert_tight(wrong, right, forged, issued, forged.rpartition(".")[2])


def _issue(watched: Watched, sent: bytes) -> str:
    """A token; this answer is the one that may have it."""
    answer = send_raw(watched.server.port, sent)
    assert answer.status == 200, answer.body
    issued: str = json.loads(answer.body)["access_token"]
    return issued


def test_features_come_out_nowhere(watched: Watched) -> None:
    """Neither of predictions that were answered, nor of those that were refused, or on which the model failed."""
    feature, number = planted("feature"), 8_172_635.25
    watched.expect(200, post("/predict", json.dumps({"text": feature}).encode(), bearer()))
    watched.expect(200, post("/v2/predict/double", json.dumps({"inputs": {"x": 13.5}}).encode(), bearer()))
    watched.expect(500, post("/v2/predict/brittle", json.dumps({"inputs": {"x": 13}}).encode(), bearer()))
    watched.expect(
        422,
        post("/predict", json.dumps({"text": [feature]}).encode(), bearer()),
        post("/predict", json.dumps({"text": "fine", feature: feature}).encode(), bearer()),
        post("/v2/predict/iris", json.dumps({"inputs": {"sepal length (cm)": number}}).encode(), bearer()),
        post("/v2/predict/iris", json.dumps({"inputs": {"sepal length (cm)": feature}}).encode(), bearer()),
    )
    watched.expect(400, post("/predict", f'{{"text": "{feature}'.encode(), bearer()))
    watched.assert_tight(feature, str(number), "planted: the canary in the coal mine".replace(" ", "_"))
    assert "coal mine" not in repr(watched.answers)


def test_addresses_of_stores_come_out_nowhere(cut_off: Watched) -> None:
    """Also while neither the database nor Redis can be reached, which many lines are written about."""
    some = "01890a5d-ac96-774b-bcce-b302099a8057"
    everything = bearer(scope="predict feedback read admin")
    cut_off.expect(
        503,
        _form(grant_type="client_credentials", client_id="service", client_secret=planted("secret")),
        request("GET", "/v2/predictions", everything),
        request("GET", f"/v2/predictions/{some}", everything),
        request("GET", "/admin/clients", everything),
        post("/v2/feedback", json.dumps({"prediction_id": some, "truth": 1}).encode(), everything),
        post("/admin/clients", b'{"name": "carol"}', everything),
        post("/predict", b'{"text": "fine"}', f"X-API-Key: presage_abcdefghijkl_{planted('key')}"),
    )
    cut_off.expect(200, post("/predict", b'{"text": "fine"}', everything))
    cut_off.expect(200, request("GET", "/health/ready"))
    cut_off.assert_tight()
    for answer in cut_off.answers:
        kind = "application/json" if b'"error"' in answer.body else "application/problem+json"
        assert_safe(answer, kind)


def test_settings_do_not_print_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are looked at."""
    inside = {
        "JWT_SECRET": SECRET,
        "LOG_HASH_KEY": planted("hash-key"),
        "DATABASE_URL": f"postgresql://presage:{planted('database')}@127.0.0.1/presage",
        "REDIS_URL": f"redis://:{planted('redis')}@127.0.0.1/0",
    }
    for name, value in inside.items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert settings.auth.jwt_secret.get_secret_value() == SECRET
    shown = f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"
    for value in inside.values():
        assert value not in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JWT_SECRET", planted("short")),
        ("JWT_SECRET", f"password-{planted('example')}-0123456789"),
        ("DATABASE_URL", f"mysql://presage:{planted('database')}@127.0.0.1/presage"),
        ("DATABASE_URL", f"postgresql://presage:{planted('database')}@127.0.0.1:port/presage"),
        ("REDIS_URL", f"http://:{planted('redis')}@127.0.0.1"),
        ("REDIS_URL", f"redis://:{planted('redis')}@127.0.0.1:port/0"),
    ],
)
def test_a_setting_that_is_refused_is_not_repeated(tmp_path: Path, name: str, value: str) -> None:
    """The start ends with the setting's name, without its value."""
    places = {"JOURNAL_DIR": f"{tmp_path}/journal", "DATABASE_URL": f"sqlite:///{tmp_path}/db", "JWT_SECRET": SECRET}
    environment = clean_environment(**{**places, "MODELS_DIR": str(tmp_path), "PORT": str(free_port()), name: value})
    command = [sys.executable, "-m", "app", "serve"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    assert name in result.stderr
    assert value not in result.stdout + result.stderr
    assert "planted" not in result.stdout + result.stderr


TEXT = b'{"text": "fine"}'
ASKS = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization")

# Beyond those that any service has, which the checks of hostile traffic look at.
ANSWERS: dict[str, tuple[int, Callable[[], bytes]]] = {
    "a prediction": (200, lambda: post("/predict", TEXT, bearer())),
    "metrics": (200, lambda: request("GET", "/metrics")),
    "the document": (200, lambda: request("GET", "/openapi.json")),
    "a page that may call": (204, lambda: request("OPTIONS", "/predict", f"Origin: {PAGE}", *ASKS)),
    "a page that may not": (400, lambda: request("OPTIONS", "/predict", "Origin: https://evil.example", *ASKS)),
    "another host": (400, lambda: request("GET", "/metrics", host="evil.example")),
    "two credentials": (400, lambda: post("/predict", TEXT, bearer(), "X-API-Key: presage_a_b")),
    "no HTTP": (400, lambda: b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "two ways to read it": (400, lambda: post("/predict", TEXT, "Content-Length: 1", "Transfer-Encoding: chunked")),
    "a scope that is missing": (403, lambda: request("GET", "/admin/clients", bearer())),
    "a model that is missing": (404, lambda: post("/v2/predict/nothing", b"{}", bearer())),
    "half a head": (408, lambda: b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"),
    "a client that exists": (409, lambda: post("/admin/clients", b'{"name": "service"}', bearer(scope="admin"))),
    "too many rows": (413, lambda: post("/v1/batch", b'{"texts": [%s]}' % b",".join([b"1"] * 10_001), bearer())),
    "no JSON": (415, lambda: post("/admin/clients", b"", bearer(scope="admin"), "Content-Encoding: gzip")),
    "a name that is none": (422, lambda: post("/admin/clients", b'{"name": "-"}', bearer(scope="admin"))),
    "a model that fails": (500, lambda: post("/v2/predict/brittle", b'{"inputs": {"x": 13}}', bearer())),
}


@pytest.mark.parametrize(("status", "sent"), ANSWERS.values(), ids=ANSWERS)
def test_every_answer_has_security_headers(watched: Watched, status: int, sent: Callable[[], bytes]) -> None:
    """Whoever in the service has made it."""
    answer = watched.ask(sent())
    assert answer.status == status, answer.body
    assert_safe(answer)


def test_the_token_endpoint_answers_as_its_standard_says(watched: Watched) -> None:
    """JSON with `error`, and no less safe for it."""
    for sent in (_form(grant_type="wrong"), _form(_basic("nobody", "wrong"), grant_type="client_credentials")):
        answer = watched.ask(sent)
        assert_safe(answer, "application/json")
        assert json.loads(answer.body)["error"] in {"unsupported_grant_type", "invalid_client"}


def test_an_answer_to_who_asks_too_much_has_security_headers(watched: Watched) -> None:
    """The limit of a plan, and that of connections."""
    slow = bearer(sub="slow")
    assert watched.ask(post("/predict", TEXT, slow)).status == 200
    limited = watched.ask(post("/predict", TEXT, slow))
    assert limited.status == 429
    assert_safe(limited)
    with contextlib.ExitStack() as stack:
        for _ in range(MOST_CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", watched.server.port)))
        crowded = watched.ask(request("GET", "/health/live"))
    assert (crowded.status, json.loads(crowded.body)["code"]) == (429, "too_many_connections")
    assert_safe(crowded)
