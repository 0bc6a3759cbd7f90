"""`POST /auth/token`: the errors of RFC 6749, scopes, and how often one may guess."""

import asyncio
import base64
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import structlog
from pydantic import SecretStr

from app.auth.clients import Clients
from app.config import AuthSettings, EdgeSettings, LimitSettings, ModelSettings, Settings, StorageSettings
from app.storage.migrations import upgrade
from tests.support.asgi import UNLIMITED, Answer, InProcess, in_process
from tests.support.demo import MODULES
from tests.support.server import free_port
from tests.support.tokens import SECRET

PASSWORD = "correct horse: battery & stäple+%41"  # noqa: S105 -- everybody's
_FORM = "application/x-www-form-urlencoded"


class Issuing:
    """An application that issues tokens; every request is from an address of its own unless it says otherwise."""

    def __init__(self, app: InProcess) -> None:
        self.app = app
        self._addresses = count(1)

    @property
    def clients(self) -> Clients:
        """Those of the application."""
        return self.app.app.services.clients

    def address(self) -> str:
        """One that nobody has used."""
        number = next(self._addresses)
        return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"

    async def asking(
        self,
        form: Mapping[str, str] | Sequence[tuple[str, str]] | bytes,
        *,
        basic: tuple[str, str] | None = None,
        address: str | None = None,
        content_type: str | None = _FORM,
        headers: Sequence[tuple[str, str]] = (),
    ) -> Answer:
        """One request, on the application's loop."""
        body = form if isinstance(form, bytes) else urlencode(form).encode()
        own = [("x-forwarded-for", address or self.address()), *headers]
        if content_type is not None:
            own.append(("content-type", content_type))
        if basic is not None:
            own.append(("authorization", _basic(*basic)))
        return await self.app._request("POST", "/auth/token", [body], own, "", "gate")

    def ask(self, *arguments: Any, **options: Any) -> Answer:
        """One request."""
        answer: Answer = self.app.run(self.asking(*arguments, **options))
        return answer

    def guess(self, name: str, address: str | None = None, secret: str = "a wrong secret") -> Answer:  # noqa: S107 -- wrong
        """A service's secret."""
        return self.ask({"grant_type": "client_credentials"}, basic=(name, secret), address=address)

    def use(self, token: str, path: str, json_body: Any) -> Answer:
        """A request with a token."""
        headers = [("authorization", f"Bearer {token}"), ("content-type", "application/json")]
        return self.app.request("POST", path, json_body=json_body, headers=headers)


def _basic(name: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()


@contextmanager
def _issuing(models_dir: Path, storage: StorageSettings, limits: LimitSettings, **auth: Any) -> Iterator[Issuing]:
    settings = Settings(
        auth=AuthSettings(**{"jwt_secret": SecretStr(SECRET), **auth}),
        edge=EdgeSettings.model_validate({"trusted_proxies": "127.0.0.1"}),
        limits=limits,
        models=ModelSettings(models_dir=models_dir, model_modules=(MODULES,)),
        storage=storage,
    )
    with in_process(settings) as app:
        yield Issuing(app)


@pytest.fixture(scope="module")
def issuing(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuing]:
    """With a database of its own."""
    folder = tmp_path_factory.mktemp("oauth")
    url = SecretStr(f"sqlite:///{folder}/presage.db")
    storage = StorageSettings(database_url=url, journal_dir=folder / "journal")
    upgrade(storage)
    with _issuing(models_dir, storage, UNLIMITED) as started:
        yield started


@pytest.fixture(scope="module")
def batch(issuing: Issuing) -> str:
    """The secret of the service `batch`, which may predict, read and administrate."""
    return issuing.clients.add("batch", by="root", scopes=["predict", "read", "admin"])


@pytest.fixture(scope="module")
def ann(issuing: Issuing) -> str:
    """The password of the user `ann`."""
    return issuing.clients.add("ann", by="root", kind="user", scopes=["predict:iris", "feedback"], secret=PASSWORD)


def _refused(answer: Answer, status: int, error: str) -> dict[str, Any]:
    """What every refusal has, whatever is wrong."""
    body: dict[str, Any] = answer.json()
    assert (answer.status, body["error"]) == (status, error)
    assert body["error_description"] == body["detail"]
    assert body["status"] == status
    assert body["request_id"] == answer.header("x-request-id")
    assert "access_token" not in body
    assert _once(answer, "content-type") == "application/json"
    assert _once(answer, "cache-control") == "no-store"
    return body


def _once(answer: Answer, name: str) -> str:
    (value,) = [value for key, value in answer.headers if key == name]
    return value


def test_a_token_is_issued_in_the_form_that_libraries_read(issuing: Issuing, batch: str) -> None:
    """To a service, by either way to show its secret; no cache keeps the answer."""
    posted = {"grant_type": "client_credentials", "client_id": "batch", "client_secret": batch}
    for answer in (issuing.ask(posted), issuing.ask({"grant_type": "client_credentials"}, basic=("batch", batch))):
        assert answer.status == 200
        body = answer.json()
        assert set(body) == {"access_token", "token_type", "expires_in", "scope"}
        assert (body["token_type"], body["expires_in"], body["scope"]) == ("Bearer", 3600, "predict read")
        assert _once(answer, "content-type") == "application/json"
        assert _once(answer, "cache-control") == "no-store"
        assert _once(answer, "pragma") == "no-cache"
        assert issuing.use(body["access_token"], "/predict", {"text": "fine"}).status == 200


def test_a_user_gets_one_for_the_password(issuing: Issuing, ann: str) -> None:
    """Whatever letters it has; a library may name itself as the client, or leave that out."""
    form = {"grant_type": "password", "username": "ann", "password": ann}
    for more in ({}, {"client_id": "a-library"}):
        answer = issuing.ask({**form, **more})
        assert answer.status == 200
        assert answer.json()["scope"] == "feedback predict:iris"
    composed = ann.replace("ä", "a\u0308")
    assert issuing.ask({**form, "password": composed}).status == 200


def test_a_media_type_may_have_parameters(issuing: Issuing, batch: str) -> None:
    """As browsers and libraries write it."""
    form = {"grant_type": "client_credentials"}
    for media_type in (f"{_FORM};charset=UTF-8", f"{_FORM.upper()} ; charset=utf-8"):
        assert issuing.ask(form, basic=("batch", batch), content_type=media_type).status == 200


WRONG_FORMS: dict[str, Any] = {
    "nothing": b"",
    "no grant": [("client_id", "batch"), ("client_secret", "x")],
    "a grant twice": [("grant_type", "client_credentials"), ("grant_type", "client_credentials")],
    "a client twice": [("grant_type", "client_credentials"), ("client_id", "batch"), ("client_id", "ann")],
    "a scope twice": [("grant_type", "password"), ("scope", "read"), ("scope", "predict"), ("username", "ann")],
    "no client": [("grant_type", "client_credentials")],
    "no secret": [("grant_type", "client_credentials"), ("client_id", "batch")],
    "an empty secret": [("grant_type", "client_credentials"), ("client_id", "batch"), ("client_secret", "")],
    "an empty name": [("grant_type", "client_credentials"), ("client_id", ""), ("client_secret", "x")],
    "no user": [("grant_type", "password"), ("password", "x")],
    "no password": [("grant_type", "password"), ("username", "ann")],
    "a very long secret": [("grant_type", "password"), ("username", "ann"), ("password", "x" * 1025)],
    "many fields": [("grant_type", "password"), *((f"field-{number}", "") for number in range(30))],
    "no UTF-8": b"grant_type=password&username=ann&password=\xff",
    "encoded bytes that are no UTF-8": b"grant_type=password&username=ann&password=%ff",
    "a body that is large": b"grant_type=password&username=ann&password=" + b"x" * 20_000,
}


@pytest.mark.parametrize("form", WRONG_FORMS.values(), ids=WRONG_FORMS)
def test_a_form_that_cannot_be_understood_is_an_invalid_request(issuing: Issuing, form: Any) -> None:
    """What is missing, comes twice or cannot be read is never guessed."""
    _refused(issuing.ask(form), 400, "invalid_request")


@pytest.mark.parametrize(
    "content_type", [None, "application/json", "multipart/form-data; boundary=x", "text/plain", ""]
)
def test_only_a_form_is_a_form(issuing: Issuing, batch: str, content_type: str | None) -> None:
    """The same bytes under another name are refused, and so is JSON."""
    document = {"grant_type": "client_credentials", "client_id": "batch", "client_secret": batch}
    for body in (urlencode(document).encode(), json.dumps(document).encode()):
        _refused(issuing.ask(body, content_type=content_type), 400, "invalid_request")


BAD_HEADERS = {
    "no base64": "Basic !!!!",
    "padding that is missing": "Basic YWI6Yw",
    "no colon": "Basic " + base64.b64encode(b"batch").decode(),
    "no UTF-8": "Basic " + base64.b64encode(b"\xff:\xff").decode(),
    "nothing": "Basic ",
    "no name": "Basic " + base64.b64encode(b":secret").decode(),
    "no secret": "Basic " + base64.b64encode(b"batch:").decode(),
}


@pytest.mark.parametrize("value", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_header_that_cannot_be_read_is_an_invalid_request(issuing: Issuing, value: str) -> None:
    """As a form that cannot."""
    answer = issuing.ask({"grant_type": "client_credentials"}, headers=[("authorization", value)])
    _refused(answer, 400, "invalid_request")


def test_one_authenticates_in_one_way(issuing: Issuing, batch: str) -> None:
    """Twice is refused, even when both are right; a client_id alone is no second way."""
    form = {"grant_type": "client_credentials", "client_id": "batch"}
    assert issuing.ask(form, basic=("batch", batch)).status == 200
    _refused(issuing.ask({**form, "client_secret": batch}, basic=("batch", batch)), 400, "invalid_request")


def test_a_client_id_beside_the_header_is_the_same_client(issuing: Issuing, batch: str) -> None:
    """Two names in one request are refused."""
    form = {"grant_type": "client_credentials", "client_id": "somebody-else"}
    _refused(issuing.ask(form, basic=("batch", batch)), 400, "invalid_request")


@pytest.mark.parametrize("grant", ["authorization_code", "refresh_token", "implicit", "CLIENT_CREDENTIALS", "x" * 500])
def test_there_are_two_grants(issuing: Issuing, batch: str, grant: str) -> None:
    """The others have an error of their own, which repeats nothing."""
    body = _refused(issuing.ask({"grant_type": grant}, basic=("batch", batch)), 400, "unsupported_grant_type")
    assert grant not in json.dumps(body)


def test_each_kind_of_client_has_its_grant(issuing: Issuing, batch: str, ann: str) -> None:
    """With the right secret, by the other's: the client is told so."""
    _refused(issuing.ask({"grant_type": "client_credentials"}, basic=("ann", quote(ann))), 400, "unauthorized_client")
    form = {"grant_type": "password", "username": "batch", "password": batch}
    _refused(issuing.ask(form), 400, "unauthorized_client")


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        (None, "predict read"),
        ("", "predict read"),
        ("read", "read"),
        ("read predict", "predict read"),
        ("read  read", "read"),
        ("predict:iris", "predict:iris"),
        ("predict:iris admin", "admin predict:iris"),
        ("admin", "admin"),
    ],
)
def test_a_scope_is_granted_as_asked(issuing: Issuing, batch: str, asked: str | None, granted: str) -> None:
    """All or part of what the client may; `admin` only by its name."""
    scope = {} if asked is None else {"scope": asked}
    answer = issuing.ask({"grant_type": "client_credentials", **scope}, basic=("batch", batch))
    assert (answer.status, answer.json()["scope"]) == (200, granted)


@pytest.mark.parametrize(
    "asked",
    ["nonsense", "feedback", "read feedback", "predict:", "predict:*", "Read", "read:iris", "read,predict"],
)
def test_a_scope_that_is_not_granted_is_refused_whole(issuing: Issuing, batch: str, asked: str) -> None:
    """Unknown, or more than the client may: no less is granted instead, and nothing is repeated."""
    body = _refused(
        issuing.ask({"grant_type": "client_credentials", "scope": asked}, basic=("batch", batch)), 400, "invalid_scope"
    )
    assert "nonsense" not in json.dumps(body)


def test_one_model_is_not_all(issuing: Issuing, ann: str) -> None:
    """Who may predict with one gets no token for every, nor for another; what they get works for that one."""
    form = {"grant_type": "password", "username": "ann", "password": ann}
    for scope in ("predict", "predict:sentiment"):
        _refused(issuing.ask({**form, "scope": scope}), 400, "invalid_scope")
    token = issuing.ask({**form, "scope": "predict:iris"}).json()["access_token"]
    assert issuing.use(token, "/predict", {"text": "fine"}).status == 403
    assert issuing.use(token, "/v2/predict/iris", {}).status == 422


def test_who_may_only_administrate_must_say_so(issuing: Issuing) -> None:
    """Without a scope there is nothing to grant."""
    secret = issuing.clients.add("root-only", by="root", scopes=["admin"])
    form = {"grant_type": "client_credentials"}
    _refused(issuing.ask(form, basic=("root-only", secret)), 400, "invalid_scope")
    assert issuing.ask({**form, "scope": "admin"}, basic=("root-only", secret)).json()["scope"] == "admin"


def _without_id(answer: Answer) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
    body = answer.json()
    del body["request_id"]
    lengths = {"x-request-id"}
    return answer.status, body, sorted(pair for pair in answer.headers if pair[0] not in lengths)


def test_nobody_learns_which_clients_there_are(issuing: Issuing) -> None:
    """Unknown, wrong, disabled, or with a name that none can have: one answer, with a challenge after Basic."""
    secrets = {name: issuing.clients.add(name, by="root") for name in ("known", "disabled")}
    issuing.clients.disable("disabled", by="root")
    cases = [("known", "wrong"), ("unknown", "wrong"), ("disabled", secrets["disabled"]), ("disabled", "wrong")]
    cases += [("nul\0", "wrong"), ("Zoë", "wrong"), ("x" * 500, "wrong"), ("known", "nul\0"), ("known", "\ud7ff")]
    by_basic = [issuing.guess(name, secret=secret) for name, secret in cases]
    answers = [_without_id(answer) for answer in by_basic]
    assert all(answer == answers[0] for answer in answers)
    _refused(by_basic[0], 401, "invalid_client")
    assert (by_basic[0].header("www-authenticate") or "").startswith('Basic realm="')
    form = {"grant_type": "client_credentials"}
    posted = [issuing.ask({**form, "client_id": name, "client_secret": secret}) for name, secret in cases]
    answers = [_without_id(answer) for answer in posted]
    assert all(answer == answers[0] for answer in answers)
    _refused(posted[0], 401, "invalid_client")
    assert posted[0].header("www-authenticate") is None


def test_nobody_learns_which_users_there_are(issuing: Issuing) -> None:
    """The same for passwords, where the error is another."""
    for name in ("usr", "gone"):
        issuing.clients.add(name, by="root", kind="user", secret=PASSWORD)
    issuing.clients.disable("gone", by="root")
    cases = [("usr", "a wrong password"), ("nobody", PASSWORD), ("gone", PASSWORD), ("nul\0", PASSWORD)]
    given = [issuing.ask({"grant_type": "password", "username": name, "password": word}) for name, word in cases]
    assert all(_without_id(answer) == _without_id(given[0]) for answer in given)
    _refused(given[0], 400, "invalid_grant")


def test_nobody_learns_it_from_the_clock(issuing: Issuing) -> None:
    """Unknown and wrong take the same time, in the median of sixty each."""
    issuing.clients.add("timed", by="root")
    issuing.guess("timed")
    seconds: dict[str, list[float]] = {"timed": [], "untimed": []}
    for _ in range(60):
        for name, taken in seconds.items():
            started = time.perf_counter()
            assert issuing.guess(name).status == 401
            taken.append(time.perf_counter() - started)
    wrong, unknown = (statistics.median(taken) for taken in seconds.values())
    assert 0.7 < unknown / wrong < 1.4


def test_basic_may_be_encoded_or_not(issuing: Issuing) -> None:
    """RFC 6749 wants name and secret encoded first, and half of the libraries do not."""
    name = "svc_1@mail.example"
    secret = issuing.clients.add(name, by="root")
    everything = "".join(f"%{ord(letter):02X}" for letter in secret)
    for given in ((name, secret), (quote(name, safe=""), quote(secret, safe="")), (name, everything)):
        assert issuing.ask({"grant_type": "client_credentials"}, basic=given).status == 200
    assert issuing.ask({"grant_type": "client_credentials"}, basic=(name, f"{secret}:")).status == 401
    header = _basic(name, secret).replace("Basic", "bAsIc")
    assert issuing.ask({"grant_type": "client_credentials"}, headers=[("authorization", header)]).status == 200


def test_two_headers_are_one_too_many(issuing: Issuing, batch: str) -> None:
    """Which of them counts would be a guess."""
    headers = [("authorization", _basic("batch", batch)), ("authorization", _basic("batch", "another"))]
    _refused(issuing.ask({"grant_type": "client_credentials"}, headers=headers), 400, "invalid_request")


def test_the_log_has_names_and_no_secrets(issuing: Issuing, batch: str) -> None:
    """One line says who got a token, with what, and one who did not; a name that none can have is left out."""
    with structlog.testing.capture_logs() as lines:
        token = issuing.ask({"grant_type": "client_credentials"}, basic=("batch", batch)).json()["access_token"]
        issuing.guess("batch", secret="a wrong secret indeed")  # noqa: S106 -- wrong
        issuing.guess("no name that there can be")
    events = [(line["event"], line["client"]) for line in lines if line["event"].startswith("token_")]
    assert events == [("token_issued", "batch"), ("token_refused", "batch"), ("token_refused", None)]
    assert not any(word in repr(lines) for word in (token, batch, "a wrong secret indeed", "no name that"))


def test_without_a_database_there_are_no_new_tokens(models_dir: Path, tmp_path: Path) -> None:
    """Which is no refusal; it is put off, and costs no attempt."""
    url = SecretStr(f"postgresql://u:secret@127.0.0.1:{free_port()}/d")
    storage = StorageSettings(database_url=url, journal_dir=tmp_path / "journal")
    with _issuing(models_dir, storage, UNLIMITED) as issuing:
        for _ in range(10):
            answer = issuing.guess("batch", "10.0.0.1")
            _refused(answer, 503, "temporarily_unavailable")
        assert "secret" not in answer.body.decode()


def test_without_a_key_that_signs_there_are_no_tokens(models_dir: Path, tmp_path: Path) -> None:
    """They come from the issuer then."""
    storage = StorageSettings(database_url=SecretStr(f"sqlite:///{tmp_path}/presage.db"), journal_dir=tmp_path / "j")
    upgrade(storage)
    url = f"http://127.0.0.1:{free_port()}/keys"
    auth = {"jwt_secret": SecretStr(""), "jwt_keys_dir": tmp_path, "jwks_url": url, "jwks_issuer": "https://i.example"}
    with _issuing(models_dir, storage, UNLIMITED, **auth) as issuing:
        secret = issuing.clients.add("batch", by="root")
        answer = issuing.ask({"grant_type": "client_credentials"}, basic=("batch", secret))
        _refused(answer, 503, "temporarily_unavailable")


def _assert_limited(statuses: Sequence[int], before: int, most: int) -> None:
    """As many as may come are answered, and the others put off; as a window slides, one more may have become free."""
    assert statuses[:most] == [before] * most
    assert set(statuses[most + 1 :]) == {429}


def test_guesses_at_one_client_from_one_address_are_few(issuing: Issuing) -> None:
    """After a handful they are put off, right ones too; the owner, elsewhere, gets in meanwhile."""
    secret = issuing.clients.add("guessed", by="root")
    address = issuing.address()
    _assert_limited([issuing.guess("guessed", address).status for _ in range(10)], 401, 6)
    limited = issuing.guess("guessed", address, secret)
    _refused(limited, 429, "temporarily_unavailable")
    assert 1 <= int(_once(limited, "retry-after")) <= 120
    assert issuing.guess("guessed", secret=secret).status == 200
    assert issuing.guess("another", address).status == 401


def test_guesses_at_many_clients_from_one_address_are_limited(issuing: Issuing) -> None:
    """Thirty a minute, whichever names are tried."""
    address = issuing.address()
    _assert_limited([issuing.guess(f"name-{number}", address).status for number in range(35)], 401, 30)


def test_right_secrets_are_not_counted(issuing: Issuing) -> None:
    """Nor what is wrong beside them; a wrong one among them is."""
    secret = issuing.clients.add("regular", by="root")
    address = issuing.address()
    for _ in range(12):
        assert issuing.guess("regular", address, secret).status == 200
        form = {"grant_type": "client_credentials", "scope": "nonsense"}
        assert issuing.ask(form, basic=("regular", secret), address=address).status == 400
    _assert_limited([issuing.guess("regular", address).status for _ in range(9)], 401, 6)


def test_under_siege_the_owner_gets_in(issuing: Issuing) -> None:
    """Two hundred addresses guess at one client: each has one guess left, and the owner needs no more."""
    secret = issuing.clients.add("besieged", by="root")
    attackers = [issuing.address() for _ in range(200)]

    async def siege() -> list[int]:
        statuses = []
        for first in range(0, len(attackers), 10):
            form = {"grant_type": "client_credentials"}
            guesses = [
                issuing.asking(form, basic=("besieged", "wrong"), address=address)
                for address in attackers[first : first + 10]
            ]
            statuses += [answer.status for answer in await asyncio.gather(*guesses)]
        return statuses

    assert issuing.app.run(siege()) == [401] * 200
    again = [issuing.guess("besieged", address).status for address in attackers[100:110]]
    assert again.count(429) >= 8
    assert issuing.guess("besieged", secret=secret).status == 200


def test_what_cannot_be_understood_draws_on_the_address(models_dir: Path, tmp_path: Path) -> None:
    """A malformed request is no guess, and not free either; another address does not pay for it."""
    storage = StorageSettings(database_url=SecretStr(f"sqlite:///{tmp_path}/presage.db"), journal_dir=tmp_path / "j")
    upgrade(storage)
    with _issuing(models_dir, storage, LimitSettings(address_rate_limit="20/minute")) as small:
        _assert_limited([small.ask(b"junk", address="10.9.9.9").status for _ in range(25)], 400, 20)
        assert int(_once(small.ask(b"junk", address="10.9.9.9"), "retry-after")) >= 1
        assert small.ask(b"junk", address="10.9.9.8").status == 400


def test_many_of_one_client_may_ask_at_once(issuing: Issuing) -> None:
    """Workers that start together all get in; nothing is taken while their secret is being verified."""
    secret = issuing.clients.add("fleet", by="root")
    address = issuing.address()

    async def start() -> list[int]:
        form = {"grant_type": "client_credentials"}
        asking = [issuing.asking(form, basic=("fleet", secret), address=address) for _ in range(15)]
        return [answer.status for answer in await asyncio.gather(*asking)]

    assert set(issuing.app.run(start())) == {200}
