"""Libraries that know nothing of us but OAuth 2.0 get tokens and use them; and what many at once cost the service."""

import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from authlib.integrations.base_client.errors import OAuthError  # type: ignore[import-untyped]
from authlib.integrations.requests_client import OAuth2Session as AuthlibSession  # type: ignore[import-untyped]
from oauthlib.oauth2 import BackendApplicationClient, InvalidClientError, InvalidGrantError, LegacyApplicationClient
from oauthlib.oauth2.rfc6749.errors import InvalidScopeError, OAuth2Error
from pydantic import SecretStr
from requests.auth import HTTPBasicAuth
from requests_oauthlib import OAuth2Session as RequestsSession

from app.auth.clients import Clients
from app.config import StorageSettings
from app.storage.database import Database
from app.storage.migrations import upgrade
from tests.support.demo import MODULES
from tests.support.raw import RawAnswer, send_raw
from tests.support.server import Server, running_server
from tests.support.tokens import SECRET

PASSWORD = "correct horse: battery & stäple+%41"  # noqa: S105 -- everybody's
_MOST_GROWTH = 200 << 20


@dataclass
class Issuing:
    """A server that issues tokens, and the secret of its service `batch`."""

    server: Server
    secret: str

    @property
    def token_url(self) -> str:
        """Where libraries ask."""
        return f"{self.server.url}/auth/token"

    def predict(self, session: Any) -> int:
        """The status of a prediction, asked for by a library's own session."""
        answer = session.post(f"{self.server.url}/predict", json={"text": "I love this product"})
        status: int = answer.status_code
        return status


@pytest.fixture(scope="module")
def issuing(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuing]:
    """With a service that may predict and read, and a user."""
    folder = tmp_path_factory.mktemp("tokens")
    storage = StorageSettings(database_url=SecretStr(f"sqlite:///{folder}/presage.db"))
    upgrade(storage)
    with Database(storage) as database:
        clients = Clients(database)
        secret = clients.add("batch", by="root", scopes=["predict", "read", "admin"])
        clients.add("ann@mail.example", by="root", kind="user", secret=PASSWORD)
    auth = {"AUTH_MODE": "jwt", "JWT_SECRET": SECRET, "TRUSTED_PROXIES": "127.0.0.1"}
    environment = {"MODEL_MODULES": MODULES, "LOG_FORMAT": "json", **auth}
    with running_server(models_dir, folder / "log", environment) as server:
        yield Issuing(server, secret)


@pytest.fixture(autouse=True)
def _over_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switches by which the libraries let tokens travel on the loopback."""
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    monkeypatch.setenv("AUTHLIB_INSECURE_TRANSPORT", "1")


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_authlib_gets_a_token_for_a_service(issuing: Issuing, method: str) -> None:
    """By either way to authenticate."""
    with AuthlibSession("batch", issuing.secret, token_endpoint_auth_method=method, scope="predict") as session:
        token = session.fetch_token(issuing.token_url, grant_type="client_credentials")
        assert (token["token_type"], token["scope"]) == ("Bearer", "predict")
        assert time.time() < token["expires_at"] <= time.time() + 3600
        assert issuing.predict(session) == 200


def test_authlib_gets_a_token_for_a_user(issuing: Issuing) -> None:
    """A public client of its own naming in front, as it must have one."""
    with AuthlibSession("a-page", token_endpoint_auth_method="none") as session:  # noqa: S106 -- no password
        session.fetch_token(issuing.token_url, username="ann@mail.example", password=PASSWORD)
        assert issuing.predict(session) == 200


def test_authlib_understands_a_refusal(issuing: Issuing) -> None:
    """By its error, not by guessing."""
    for secret, scope, error in (("wrong", None, "invalid_client"), (issuing.secret, "nonsense", "invalid_scope")):
        with AuthlibSession("batch", secret, scope=scope) as session:
            with pytest.raises(OAuthError) as refused:
                session.fetch_token(issuing.token_url, grant_type="client_credentials")
            assert refused.value.error == error


@pytest.mark.parametrize("by_basic", [True, False])
def test_requests_oauthlib_gets_a_token_for_a_service(issuing: Issuing, *, by_basic: bool) -> None:
    """By either way to authenticate."""
    given: dict[str, Any] = {"auth": HTTPBasicAuth("batch", issuing.secret)}
    if not by_basic:
        given = {"client_secret": issuing.secret, "include_client_id": True}
    with RequestsSession(client=BackendApplicationClient("batch", scope=["predict", "admin"])) as session:
        token = session.fetch_token(issuing.token_url, **given)
        assert set(token["scope"]) == {"predict", "admin"}
        assert issuing.predict(session) == 200


def test_requests_oauthlib_gets_a_token_for_a_user(issuing: Issuing) -> None:
    """With a client that has no secret."""
    with RequestsSession(client=LegacyApplicationClient("a-page")) as session:
        session.fetch_token(issuing.token_url, username="ann@mail.example", password=PASSWORD, include_client_id=True)
        assert issuing.predict(session) == 200


def test_requests_oauthlib_understands_a_refusal(issuing: Issuing) -> None:
    """Each by an exception of its own."""
    wrong = HTTPBasicAuth("batch", "wrong")
    with RequestsSession(client=BackendApplicationClient("batch")) as session, pytest.raises(InvalidClientError):
        session.fetch_token(issuing.token_url, auth=wrong)
    with RequestsSession(client=LegacyApplicationClient("a")) as session, pytest.raises(InvalidGrantError):
        session.fetch_token(issuing.token_url, username="ann@mail.example", password="wrong")  # noqa: S106 -- wrong
    right = HTTPBasicAuth("batch", issuing.secret)
    client = BackendApplicationClient("batch", scope=["feedback"])
    with RequestsSession(client=client) as session, pytest.raises(InvalidScopeError):
        session.fetch_token(issuing.token_url, auth=right)


def test_a_library_that_guesses_is_told_to_wait(issuing: Issuing) -> None:
    """It reads the error like any other, and the owner elsewhere is not kept out."""
    wrong = HTTPBasicAuth("batch", "wrong")
    with RequestsSession(client=BackendApplicationClient("batch")) as session:
        session.headers["X-Forwarded-For"] = "10.1.1.1"
        for _ in range(8):
            with pytest.raises(OAuth2Error) as refused:
                session.fetch_token(issuing.token_url, auth=wrong)
        assert refused.value.error == "temporarily_unavailable"
        session.headers["X-Forwarded-For"] = "10.1.1.2"
        assert session.fetch_token(issuing.token_url, auth=HTTPBasicAuth("batch", issuing.secret))


def test_a_hundred_at_once_cost_little(issuing: Issuing) -> None:
    """Two hashes at a time: others wait or are put off; memory stays, and who asks something else is answered."""
    before = _status(issuing.server, "VmRSS")
    begin, done = threading.Barrier(102), threading.Event()

    def log_in(number: int) -> RawAnswer:
        begin.wait(30)
        return _log_in(issuing, f"10.2.0.{number}")

    with ThreadPoolExecutor(101) as threads:
        coming = [threads.submit(log_in, number) for number in range(100)]
        probing = threads.submit(_probe, issuing.server, begin, done)
        begin.wait(30)
        started = time.perf_counter()
        answers = [answer.result() for answer in coming]
        lasted = time.perf_counter() - started
        done.set()
        probes = probing.result()
    statuses = [answer.status for answer in answers]
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 18
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status == 503)
    assert statistics.median(probes) < lasted / 10
    assert _status(issuing.server, "VmHWM") - before < _MOST_GROWTH
    assert _log_in(issuing, "10.2.1.1").status == 200


def _log_in(issuing: Issuing, address: str) -> RawAnswer:
    """Without a library, of which a hundred at once would take longer than the service."""
    body = f"grant_type=client_credentials&client_id=batch&client_secret={issuing.secret}"
    head = ["POST /auth/token HTTP/1.1", "Host: localhost", f"X-Forwarded-For: {address}"]
    head += ["Content-Type: application/x-www-form-urlencoded", f"Content-Length: {len(body)}", "", body]
    return send_raw(issuing.server.port, "\r\n".join(head).encode(), timeout=60)


def _probe(server: Server, begin: threading.Barrier, done: threading.Event) -> list[float]:
    """How many seconds each answer took meanwhile."""
    seconds = []
    with server.client() as client:
        begin.wait(30)
        while not done.is_set():
            started = time.perf_counter()
            assert client.get("/health/live").status_code == 200
            seconds.append(time.perf_counter() - started)
    return seconds


def _status(server: Server, name: str) -> int:
    """In bytes, as the kernel has it."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) << 10
