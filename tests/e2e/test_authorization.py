"""Who may call what: every route against every role, who may see the docs and metrics, and the modes of access."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import SecretStr

from app.auth.clients import Clients
from app.config import AuthSettings, Settings, StorageSettings
from app.factory import create_app
from app.storage.database import Database
from app.storage.migrations import upgrade
from tests.support.demo import MODULES
from tests.support.server import ROOT, Server, clean_environment, free_port, running_server
from tests.support.tokens import SECRET, token

ROLES = {
    "nobody": None,
    "expired": token(scope="predict feedback read admin", exp=int(time.time()) - 1),
    "predict": token(scope="predict"),
    "predict:sentiment": token(scope="predict:sentiment"),
    "predict:iris": token(scope="predict:iris"),
    "feedback": token(scope="feedback"),
    "read": token(scope="read"),
    "admin": token(scope="admin"),
}
EVERYBODY = set(ROLES)
OF_SENTIMENT = {"predict", "predict:sentiment"}
OF_IRIS = {"predict", "predict:iris"}
OF_ANY_MODEL = {"predict", "predict:sentiment", "predict:iris"}
ADMIN = {"admin"}

# Written by hand: what a route declares is compared with this, and never the other way round.
TABLE: dict[tuple[str, str], set[str]] = {
    ("POST", "/predict"): OF_SENTIMENT,
    ("POST", "/batch-predict"): OF_SENTIMENT,
    ("POST", "/v1/predict"): OF_SENTIMENT,
    ("POST", "/v1/batch"): OF_SENTIMENT,
    ("POST", "/v2/predict"): OF_SENTIMENT,
    ("POST", "/v2/batch"): OF_SENTIMENT,
    ("POST", "/v2/predict/{model}"): OF_IRIS,
    ("POST", "/v2/batch/{model}"): OF_IRIS,
    ("GET", "/v2/catalog"): OF_ANY_MODEL | {"read"},
    ("GET", "/v2/catalog/{model}"): OF_IRIS | {"read"},
    ("GET", "/v2/catalog/{model}/comparison"): OF_IRIS | {"read"},
    ("GET", "/v2/predictions"): OF_ANY_MODEL | {"read"},
    ("GET", "/v2/predictions/{prediction_id}"): OF_ANY_MODEL | {"read"},
    ("POST", "/v2/feedback"): {"feedback"},
    ("GET", "/v2/usage"): OF_ANY_MODEL | {"feedback", "read", "admin"},
    ("POST", "/auth/token"): EVERYBODY,
    ("GET", "/admin/clients"): ADMIN,
    ("POST", "/admin/clients"): ADMIN,
    ("PATCH", "/admin/clients/{name}"): ADMIN,
    ("POST", "/admin/clients/{name}/secret"): ADMIN,
    ("GET", "/admin/clients/{name}/keys"): ADMIN,
    ("POST", "/admin/clients/{name}/keys"): ADMIN,
    ("DELETE", "/admin/keys/{key_id}"): ADMIN,
    ("POST", "/admin/revocations"): ADMIN,
    ("GET", "/admin/models"): ADMIN,
    ("PUT", "/admin/models/{model}/aliases/{alias}"): ADMIN,
    ("DELETE", "/admin/models/{model}/aliases/{alias}"): ADMIN,
    ("PUT", "/admin/models/{model}/traffic"): ADMIN,
    ("POST", "/admin/models/{model}/promote"): ADMIN,
    ("POST", "/admin/models/{model}/rollback"): ADMIN,
    ("GET", "/admin/models/{model}/promotions"): ADMIN,
    ("GET", "/admin/audit"): ADMIN,
    ("GET", "/health/live"): EVERYBODY,
    ("HEAD", "/health/live"): EVERYBODY,
    ("GET", "/health/ready"): EVERYBODY,
    ("HEAD", "/health/ready"): EVERYBODY,
    ("GET", "/docs"): EVERYBODY,
    ("GET", "/docs/assets/{name}"): EVERYBODY,
    ("GET", "/openapi.json"): EVERYBODY,
    ("GET", "/metrics"): EVERYBODY,
}
# A declaration cannot say that a verb for one model shows that model alone; the endpoint looks.
DECLARED = {
    "/v2/catalog/{model}": OF_ANY_MODEL | {"read"},
    "/v2/catalog/{model}/comparison": OF_ANY_MODEL | {"read"},
}
ARGUMENTS = {
    "{model}": "iris",
    "{prediction_id}": "01890a5d-ac96-774b-bcce-b302099a8057",
    "{name}": "somebody",
    "{key_id}": "aaaaaaaaaaaa",
    "{alias}": "nobody",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a database that is migrated."""
    folder = tmp_path_factory.mktemp("authorization")
    upgrade(StorageSettings(database_url=SecretStr(f"sqlite:///{folder}/presage.db")))
    return folder


@pytest.fixture(scope="module")
def guarded(models_dir: Path, folder: Path) -> Iterator[Server]:
    """A server that wants tokens."""
    environment = {"AUTH_MODE": "jwt", "JWT_SECRET": SECRET, "MODEL_MODULES": MODULES, "LOG_FORMAT": "json"}
    with running_server(models_dir, folder / "log", environment) as server:
        yield server


@pytest.fixture(scope="module")
def client(guarded: Server) -> Iterator[httpx2.Client]:
    """Of that server."""
    with guarded.client() as client:
        yield client


def test_every_route_is_in_the_table_and_no_other() -> None:
    """A route that is added without a thought of who may call it fails here."""
    app = create_app(Settings(auth=AuthSettings(auth_mode="none")))
    routes = set()
    for context in iter_route_contexts(list(app.routes)):
        assert isinstance(context.original_route, APIRoute)
        routes |= {(method, context.path) for method in context.original_route.methods or ()}
    assert routes == TABLE.keys()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("route", TABLE, ids=" ".join)
def test_a_route_lets_in_whom_the_table_says(client: httpx2.Client, route: tuple[str, str], role: str) -> None:
    """The others get 401 without a good token, and 403 with one that does not permit it."""
    method, path = route
    for name, value in ARGUMENTS.items():
        path = path.replace(name, value)
    given = ROLES[role]
    headers = {"authorization": f"Bearer {given.decode()}"} if given else {}
    status = client.request(method, path, headers=headers).status_code
    if role in TABLE[route]:
        assert status not in {401, 403}
        assert status < 500
    else:
        assert status == (401 if role in {"nobody", "expired"} else 403)


def test_the_document_shows_what_is_asked(client: httpx2.Client) -> None:
    """The `security` of every operation lets in the roles of the table, by token and by API key alike."""
    paths = client.get("/openapi.json").json()["paths"]
    for (method, template), allowed in TABLE.items():
        path = template.replace("{model}", "iris") if template.startswith(("/v2/predict/", "/v2/batch/")) else template
        operation = paths.get(path, {}).get(method.lower())
        if operation is None:
            assert method == "HEAD" or path.startswith(("/docs", "/openapi.json", "/metrics")), path
            continue
        ways: dict[str, set[str]] = {}
        for way in operation["security"]:
            for scheme, scopes in way.items():
                ways.setdefault(scheme, set()).update(scopes)
        assert ways.keys() == (set() if allowed == EVERYBODY else {"OAuth2", "ApiKey"}), path
        for needed in ways.values():
            assert {role for role in ROLES if _would_do(role, needed)} == DECLARED.get(path, allowed), path


def _would_do(role: str, needed: set[str]) -> bool:
    """A verb does for a model, and a verb for one model for a route that shows what concerns it."""
    return any(role in {scope, scope.partition(":")[0]} or role.partition(":")[0] == scope for scope in needed)


# Settings of exposure, and what the docs page, its document and the metrics answer to nobody, to `predict` and `read`.
OPEN, GUARDED, CLOSED = (200, 200, 200), (401, 403, 200), (404, 404, 404)
EXPOSURES: dict[str, tuple[dict[str, str], tuple[int, ...], tuple[int, ...]]] = {
    "development": ({}, OPEN, OPEN),
    "production": ({"ENVIRONMENT": "production"}, CLOSED, GUARDED),
    "the other way round": ({"ENVIRONMENT": "production", "DOCS": "token", "METRICS": "off"}, GUARDED, CLOSED),
    "open in production": ({"ENVIRONMENT": "production", "DOCS": "on", "METRICS": "on"}, OPEN, OPEN),
    "closed in development": ({"DOCS": "off", "METRICS": "token"}, CLOSED, GUARDED),
}


@pytest.mark.parametrize(("settings", "docs", "metrics"), EXPOSURES.values(), ids=EXPOSURES)
def test_docs_and_metrics_are_shown_to_whom_the_settings_say(
    tmp_path: Path, settings: dict[str, str], docs: tuple[int, ...], metrics: tuple[int, ...]
) -> None:
    """In production docs are closed and metrics want a token, unless somebody says otherwise."""
    environment = {"AUTH_MODE": "jwt", "JWT_SECRET": SECRET, **settings}
    with running_server(tmp_path / "none", tmp_path / "log", environment, wait=False) as server:
        server.wait_for("/health/live", 200)
        roles = [ROLES[name] for name in ("nobody", "predict", "read")]
        for path in ("/docs", "/openapi.json", "/docs/assets/swagger-ui.css"):
            assert _statuses(server, path, roles) == docs, path
        assert _statuses(server, "/metrics", roles) == metrics


def _statuses(server: Server, path: str, tokens: Sequence[bytes | None]) -> tuple[int, ...]:
    answers = []
    with server.client() as client:
        for given in tokens:
            headers = {"authorization": f"Bearer {given.decode()}"} if given else {}
            answers.append(client.get(path, headers=headers).status_code)
    return tuple(answers)


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "everybody may do everything": ({"AUTH_MODE": "none"}, "AUTH_MODE=none is refused in production"),
    "no key": ({}, "JWT_SECRET: is required in production, or keys in JWT_KEYS_DIR, or JWKS_URL"),
    "a platform without a header": (
        {"AUTH_MODE": "platform", "TRUSTED_PROXIES": "10.0.0.0/8"},
        "AUTH_MODE=platform needs PLATFORM_HEADER: where the proxy names the caller",
    ),
    "a platform without a proxy": (
        {"AUTH_MODE": "platform", "PLATFORM_HEADER": "X-Forwarded-User"},
        "AUTH_MODE=platform needs TRUSTED_PROXIES: from whom PLATFORM_HEADER is believed",
    ),
}


@pytest.mark.parametrize(("settings", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_safe_does_not_start_in_production(tmp_path: Path, settings: dict[str, str], reason: str) -> None:
    """One line says which setting, and the exit code is 1."""
    places = {"JWT_KEYS_DIR": f"{tmp_path}/keys", "DATABASE_URL": f"sqlite:///{tmp_path}/db", "PORT": str(free_port())}
    result = subprocess.run(
        [sys.executable, "-m", "app", "serve"],
        cwd=ROOT,
        env=clean_environment(ENVIRONMENT="production", **places, **settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1, result.stdout
    assert result.stderr == f"presage: invalid settings\n  {reason}\n"


PROXY, STRANGER = "127.0.0.2", "127.0.0.3"


@pytest.fixture(scope="module")
def behind_a_platform(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that believes what its proxy says of callers; `reader` and `gone` are registered."""
    folder = tmp_path_factory.mktemp("platform")
    storage = StorageSettings(database_url=SecretStr(f"sqlite:///{folder}/presage.db"))
    upgrade(storage)
    with Database(storage) as database:
        clients = Clients(database)
        clients.add("reader", by="test", scopes=["read"], plan="7/minute")
        clients.add("gone", by="test")
        clients.disable("gone", by="test")
    environment = {
        "AUTH_MODE": "platform",
        "PLATFORM_HEADER": "X-Forwarded-User",
        "TRUSTED_PROXIES": PROXY,
        "JWT_SECRET": SECRET,
        "MODEL_MODULES": MODULES,
    }
    with running_server(models_dir, folder / "log", environment) as server:
        yield server


def _usage(server: Server, peer: str, *headers: tuple[str, str]) -> httpx2.Response:
    """Who the caller is to the service."""
    with httpx2.Client(transport=httpx2.HTTPTransport(local_address=peer)) as client:
        return client.get(f"{server.url}/v2/usage", headers=httpx2.Headers(headers))


def test_a_trusted_proxy_names_the_caller(behind_a_platform: Server) -> None:
    """Anybody may do what the settings permit, a registered client what it is registered for."""
    anybody = _usage(behind_a_platform, PROXY, ("X-Forwarded-User", "carol@example.com")).json()
    assert (anybody["principal"], anybody["scopes"]) == ("carol@example.com", ["feedback", "predict"])
    reader = _usage(behind_a_platform, PROXY, ("x-forwarded-user", "reader")).json()
    assert (reader["principal"], reader["scopes"], reader["plan"]) == ("reader", ["read"], "7/minute")


NAMELESS: dict[str, list[tuple[str, str]]] = {
    "no name": [],
    "an empty name": [("X-Forwarded-User", "")],
    "a blank name": [("X-Forwarded-User", "  ")],
    "a long name": [("X-Forwarded-User", "a" * 256)],
    "a name in another header": [("X-User", "carol")],
    "a name that no log should hold": [("X-Forwarded-User", "carol\u00e9")],
    "a disabled client": [("X-Forwarded-User", "gone")],
    "a token instead": [("Authorization", f"Bearer {token(scope='admin').decode()}")],
}


@pytest.mark.parametrize("headers", NAMELESS.values(), ids=NAMELESS)
def test_whom_the_proxy_does_not_name_is_nobody(behind_a_platform: Server, headers: list[tuple[str, str]]) -> None:
    """401, with a challenge."""
    with socket.create_connection(("127.0.0.1", behind_a_platform.port), 20, (PROXY, 0)) as connection:
        lines = [f"{name}: {value}".encode() for name, value in headers]
        connection.sendall(b"\r\n".join([b"GET /v2/usage HTTP/1.1", b"Host: localhost", *lines, b"", b""]))
        head = connection.recv(65_536).lower()
    assert head.startswith(b"http/1.1 401 ")
    assert b"\r\nwww-authenticate: bearer" in head


def test_two_names_are_a_guess(behind_a_platform: Server) -> None:
    """A proxy that adds a header to the caller's own would let callers choose."""
    names = [("X-Forwarded-User", "carol"), ("X-Forwarded-User", "carol")]
    answer = _usage(behind_a_platform, PROXY, *names)
    assert (answer.status_code, answer.json()["code"]) == (400, "ambiguous_credentials")


@pytest.mark.parametrize("forwarded", [None, PROXY, f"{PROXY}, {PROXY}", f"for={PROXY}"])
def test_a_stranger_cannot_say_who_they_are(behind_a_platform: Server, forwarded: str | None) -> None:
    """The header counts by who sends it, and by nothing else that they send."""
    also = [(name, forwarded) for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP") if forwarded]
    answer = _usage(behind_a_platform, STRANGER, ("X-Forwarded-User", "carol"), *also)
    assert answer.status_code == 401


def test_a_proxy_that_names_the_caller_may_name_their_address_too(behind_a_platform: Server) -> None:
    """What counts is who connects; the caller's own address makes nobody less trusted."""
    headers = [("X-Forwarded-User", "carol"), ("X-Forwarded-For", "203.0.113.7")]
    assert _usage(behind_a_platform, PROXY, *headers).json()["principal"] == "carol"
