"""The edge: whose word counts about a request, which names the service goes by, and whose pages may call."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.api.edge import TRUSTED_PEER, Edge, budget_address
from app.config import AuthSettings, EdgeSettings, LimitSettings, ModelSettings, Settings, StorageSettings
from tests.support.asgi import OPEN, UNLIMITED, Answer, InProcess, in_process
from tests.support.demo import MODULES
from tests.support.tokens import SECRET, token

# The peer of every request that `InProcess` makes.
PEER = "127.0.0.1"
GUARDED = AuthSettings(jwt_secret=SecretStr(SECRET))
MODEL_PATHS = ("/predict", "/v1/predict", "/v2/predict", "/v2/predict/sentiment")

Header = tuple[str, str]
Start = Callable[..., AbstractContextManager[InProcess]]


@pytest.fixture(scope="module")
def start(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts an application with these settings of its edge."""

    @contextmanager
    def started(auth: AuthSettings = OPEN, limits: LimitSettings = UNLIMITED, **edge: str) -> Iterator[InProcess]:
        folder = tmp_path_factory.mktemp("edge")
        settings = Settings(
            edge=EdgeSettings.model_validate(edge),
            auth=auth,
            limits=limits,
            models=ModelSettings(models_dir=models_dir, model_modules=(MODULES,)),
            storage=StorageSettings(database_url=SecretStr(f"sqlite:///{folder}/db"), journal_dir=folder / "journal"),
        )
        with in_process(settings) as app:
            yield app

    return started


def seen_by(edge: Edge, peer: str, *headers: Header) -> dict[str, Any]:
    """A request's scope, once the edge has looked at it."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": "http", "scheme": "http", "client": (peer, 1), "headers": raw}
    edge.believe(scope)
    return scope


@pytest.fixture(scope="module")
def edge() -> Edge:
    """Behind proxies in one private network of each family, and at one address."""
    return Edge(EdgeSettings.model_validate({"trusted_proxies": "10.0.0.0/8, fd00::/8, 192.0.2.1"}))


CHAINS: dict[str, tuple[list[str], str]] = {
    "nobody": ([], "10.0.0.1"),
    "one address": (["203.0.113.7"], "203.0.113.7"),
    "what the caller has written before it": (["1.1.1.1, 2.2.2.2, 203.0.113.7"], "203.0.113.7"),
    "trusted proxies behind it": (["1.1.1.1, 203.0.113.7, 10.9.9.9, 192.0.2.1"], "203.0.113.7"),
    "only trusted proxies": (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
    "two headers": (["1.1.1.1", "203.0.113.7, 10.0.0.2"], "203.0.113.7"),
    "no blanks": (["1.1.1.1,203.0.113.7"], "203.0.113.7"),
    "a port": (["203.0.113.7:4711"], "203.0.113.7"),
    "IPv6": (["2001:DB8:0:0::1"], "2001:db8::1"),
    "IPv6 in brackets": (["[2001:db8::1]"], "2001:db8::1"),
    "IPv6 with a port": (["[2001:db8::1]:443"], "2001:db8::1"),
    "a trusted proxy of IPv6": (["203.0.113.7, fd00::2"], "203.0.113.7"),
    "a trusted proxy as IPv4 in IPv6": (["203.0.113.7, ::ffff:10.0.0.2"], "203.0.113.7"),
    "a word": (["203.0.113.7, unknown"], "10.0.0.1"),
    "a word before it": (["unknown, 203.0.113.7"], "203.0.113.7"),
    "nothing": ([""], "10.0.0.1"),
    "a comma at the end": (["203.0.113.7,"], "10.0.0.1"),
    "zeros in front": (["203.0.113.007"], "10.0.0.1"),
    "a number": (["3405803783"], "10.0.0.1"),
    "a name": (["localhost"], "10.0.0.1"),
    "a line break": (["203.0.113.7\r\nX: y"], "10.0.0.1"),
    "letters that are none": (["\u00b2\u00b2.1.1.1"], "10.0.0.1"),
}


@pytest.mark.parametrize(("chain", "caller"), CHAINS.values(), ids=CHAINS)
def test_a_trusted_proxy_says_who_called(edge: Edge, chain: list[str], caller: str) -> None:
    """The last address that no trusted proxy has; a proxy that writes no address is itself the caller."""
    scope = seen_by(edge, "10.0.0.1", *[("X-Forwarded-For", value) for value in chain])
    assert scope["client"][0] == caller
    assert scope[TRUSTED_PEER] is True


@pytest.mark.parametrize("peer", ["11.0.0.1", "2001:db8::1", "::ffff:11.0.0.1", "192.0.2.10", "", "testclient"])
@pytest.mark.parametrize("chain", ["203.0.113.7", "10.0.0.1", "127.0.0.1", "10.0.0.1, 10.0.0.1", "::1"])
def test_a_stranger_does_not_say_who_called(edge: Edge, peer: str, chain: str) -> None:
    """Whatever they write, and in whichever header."""
    names = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Via")
    scope = seen_by(edge, peer, *[(name, chain) for name in names], ("X-Forwarded-Proto", "https"))
    assert scope["client"] == (peer, 1)
    assert scope["scheme"] == "http"
    assert TRUSTED_PEER not in scope


@pytest.mark.parametrize("name", ["Forwarded", "X-Real-IP", "X-Client-IP", "True-Client-IP"])
def test_one_header_counts_and_no_other(edge: Edge, name: str) -> None:
    """A proxy overwrites or extends one of them, and lets callers write the others."""
    scope = seen_by(edge, "10.0.0.1", (name, "for=203.0.113.7"), (name, "203.0.113.7"))
    assert scope["client"][0] == "10.0.0.1"


@pytest.mark.parametrize("peer", ["10.0.0.1", "::ffff:10.0.0.1", "fd00::1", "192.0.2.1"])
def test_a_proxy_is_trusted_in_every_spelling_of_its_address(edge: Edge, peer: str) -> None:
    """A socket for both families gives an address of IPv4 as one of IPv6."""
    scope = seen_by(edge, peer, ("X-Forwarded-For", "203.0.113.7"), ("X-Forwarded-Proto", "https"))
    assert (scope["client"][0], scope["scheme"]) == ("203.0.113.7", "https")


def test_a_long_chain_costs_nothing(edge: Edge) -> None:
    """What a proxy passes on may be as long as a header; a few hops of it are looked at."""

    def seconds(hops: int) -> float:
        chain = ", ".join(["10.0.0.2"] * hops)
        best = float("inf")
        for _ in range(20):
            started = time.perf_counter()
            seen_by(edge, "10.0.0.1", ("X-Forwarded-For", chain))
            best = min(best, time.perf_counter() - started)
        return best

    assert seconds(3_000) < 10 * seconds(30)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8::1", "2001:db8::ffff:1"),
        ("2001:db8::1", "2001:DB8:0:0:1::"),
        ("203.0.113.7", "::ffff:203.0.113.7"),
        ("::ffff:203.0.113.7", "::ffff:cb00:7107"),
    ],
)
def test_one_caller_has_one_budget(one: str, other: str) -> None:
    """In every spelling of an address, and with every address of a network that one caller has."""
    assert budget_address({"client": (one, 1)}) == budget_address({"client": (other, 1)})


@pytest.mark.parametrize(
    ("one", "other"),
    [("2001:db8::1", "2001:db8:0:1::1"), ("203.0.113.7", "203.0.113.8"), ("::ffff:203.0.113.7", "::ffff:203.0.113.8")],
)
def test_two_callers_have_two_budgets(one: str, other: str) -> None:
    """Neighbours do not pay for one another."""
    assert budget_address({"client": (one, 1)}) != budget_address({"client": (other, 1)})


# Hosts.
@pytest.fixture(scope="module")
def named(start: Start) -> Iterator[InProcess]:
    """An application with names."""
    with start(allowed_hosts="api.example.com, *.example.org, 127.0.0.1, [::1]") as app:
        yield app


HOSTS = {
    "api.example.com": 200,
    "API.Example.COM": 200,
    "api.example.com:8443": 200,
    "a.example.org": 200,
    "a.b.example.org:80": 200,
    "127.0.0.1:8000": 200,
    "[::1]": 200,
    "[::1]:8000": 200,
    "example.com": 400,
    "www.api.example.com": 400,
    "api.example.com.evil.com": 400,
    "evil-api.example.com": 400,
    "example.org": 400,
    "evilexample.org": 400,
    ".example.org.evil.com": 400,
    "evil.com:example.org": 400,
    "evil.com:a.example.org": 400,
    "[::2]": 400,
    "::1": 400,
    "127.0.0.2": 400,
    "localhost": 400,
    "*": 400,
    "": 400,
    ":8000": 400,
    "\n": 400,
}


@pytest.mark.parametrize(("host", "status"), HOSTS.items())
def test_a_request_is_for_one_of_our_names(named: InProcess, host: str, status: int) -> None:
    """In any case, with any port; a name that only looks like ours is not."""
    headers = [("host", host), ("content-type", "application/json")]
    cold = named.request("GET", "/v2/catalog", headers=[("host", host)])
    hot = named.request("POST", "/predict", json_body={"text": "fine"}, headers=headers)
    assert (cold.status, hot.status) == (status, status)
    if status == 400:
        assert [answer.json()["code"] for answer in (cold, hot)] == ["unknown_host"] * 2
        assert host != "evil.com:a.example.org" or b"evil" not in cold.body


def test_a_request_without_a_name_is_for_nobody(named: InProcess) -> None:
    """HTTP/1.0 knows no Host."""
    assert named.request("GET", "/v2/catalog").status == 400


@pytest.mark.parametrize("host", ["10.1.2.3:8000", "evil.example", "", None])
def test_probes_know_addresses_only(named: InProcess, host: str | None) -> None:
    """Health answers under every name, and nothing beside it does."""
    headers = [] if host is None else [("host", host)]
    for path in ("/health/live", "/health/ready"):
        assert named.request("GET", path, headers=headers).status == 200
    for path in ("/health", "/health/../v2/catalog", "//health/live", "/HEALTH/live"):
        assert named.request("GET", path, headers=headers).status in {400, 404}


def test_other_names_are_nobodys_business_by_default(app: InProcess) -> None:
    """Without the setting every name will do."""
    for host in ("anything.example", ""):
        assert app.request("GET", "/v2/catalog", headers=[("host", host)]).status == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "presage", "", "good.com"])
def test_a_name_opens_nothing(shared: InProcess, host: str) -> None:
    """Whoever is addressed, and however local that sounds, a credential is wanted."""
    for method, path in (("POST", "/predict"), ("GET", "/v2/catalog"), ("GET", "/admin/clients")):
        assert shared.request(method, path, headers=[("host", host)]).status == 401


# What a browser is told.
def _allowed(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers if name.startswith("access-control-")}


@pytest.fixture(scope="module")
def shared(start: Start) -> Iterator[InProcess]:
    """An application that the pages of two origins may call, with tokens."""
    with start(auth=GUARDED, cors_origins="https://good.com, http://localhost:3000") as app:
        yield app


def test_no_page_may_call_by_default(app: InProcess) -> None:
    """A browser that hears nothing refuses."""
    for origin in ("https://good.com", "null", "http://localhost"):
        headers = [("origin", origin)]
        assert _allowed(app.request("GET", "/v2/catalog", headers=headers)) == {}
        asks = [*headers, ("access-control-request-method", "POST")]
        answer = app.request("OPTIONS", "/predict", headers=asks)
        assert answer.status in (401, 404, 405)
        assert _allowed(answer) == {}


BEARER = ("authorization", f"Bearer {token().decode()}")
SENT: dict[str, tuple[str, str, list[Header], int]] = {
    "a prediction": ("POST", "/predict", [BEARER], 200),
    "a prediction without a token": ("POST", "/predict", [], 401),
    "a cold route": ("GET", "/v2/catalog", [BEARER], 200),
    "a cold route without a token": ("GET", "/v2/catalog", [], 401),
    "a path that is none": ("GET", "/nothing", [BEARER], 404),
    "a method that is none": ("DELETE", "/predict", [BEARER], 405),
    "a body that does not fit": ("POST", "/v2/predict", [BEARER], 422),
}


@pytest.mark.parametrize(("method", "path", "headers", "status"), SENT.values(), ids=SENT)
@pytest.mark.parametrize("origin", ["https://good.com", "http://localhost:3000"])
def test_a_page_that_may_call_may_read_every_answer(
    shared: InProcess, method: str, path: str, headers: list[Header], status: int, origin: str
) -> None:
    """Also what went wrong; caches keep answers for different pages apart."""
    sent = [*headers, ("origin", origin), ("content-type", "application/json")]
    body = {"text": "fine"} if method == "POST" else None
    answer = shared.request(method, path, json_body=body, headers=sent)
    assert answer.status == status, answer.body
    told = _allowed(answer)
    assert told["access-control-allow-origin"] == origin
    assert "access-control-allow-credentials" not in told
    assert "RateLimit" in told["access-control-expose-headers"]
    assert "origin" in (answer.header("vary") or "").lower()


OTHERS = (
    "https://evil-good.com",
    "https://good.com.evil.com",
    "https://good.com:8443",
    "https://a.good.com",
    "http://good.com",
    "https://good.co",
    "https://good.com/",
    "https://good.comx",
    "https://evil.com#https://good.com",
    "https://good.com, https://evil.com",
    "http://localhost",
    "http://localhost:30000",
    "null",
    "*",
    "",
)


@pytest.mark.parametrize("origin", OTHERS)
def test_a_page_that_only_looks_like_one_that_may_is_told_nothing(shared: InProcess, origin: str) -> None:
    """The whole origin counts, and nothing is computed from it."""
    for headers in ([("origin", origin), BEARER], [("origin", origin)]):
        told = _allowed(shared.request("GET", "/v2/catalog", headers=headers))
        assert "access-control-allow-origin" not in told
        assert "access-control-allow-credentials" not in told
    answer = shared.request("OPTIONS", "/predict", headers=_asks(origin, "POST"))
    assert answer.status == 400
    assert "access-control-allow-origin" not in _allowed(answer)


def _asks(origin: str, method: str, *names: str) -> list[Header]:
    asks = [("origin", origin), ("access-control-request-method", method)]
    return [*asks, *[("access-control-request-headers", name) for name in names]]


@pytest.mark.parametrize("path", ["/predict", "/v2/predict/iris", "/admin/clients", "/nothing"])
def test_a_browser_may_ask_first_without_a_credential(shared: InProcess, path: str) -> None:
    """It sends none with the question; the call itself needs one."""
    answer = shared.request("OPTIONS", path, headers=_asks("https://good.com", "POST", "authorization, content-type"))
    told = _allowed(answer)
    assert (answer.status, answer.body) == (204, b"")
    assert told["access-control-allow-origin"] == "https://good.com"
    assert "POST" in told["access-control-allow-methods"]
    assert "authorization" in told["access-control-allow-headers"].lower()
    assert int(told["access-control-max-age"]) <= 7200
    assert "access-control-allow-credentials" not in told


@pytest.mark.parametrize(
    "asks", [_asks("https://good.com", "PUT"), _asks("https://good.com", "POST", "x-evil"), _asks("null", "POST")]
)
def test_a_browser_is_refused_what_is_not_allowed(shared: InProcess, asks: list[Header]) -> None:
    """A method or header that no route takes, or another page."""
    answer = shared.request("OPTIONS", "/predict", headers=asks)
    assert answer.status == 400
    assert answer.header("content-type") == "application/problem+json"
    assert b"evil" not in answer.body


def test_any_page_may_call_with_a_token_of_its_own(start: Start) -> None:
    """With `*`: the browser is still told to send no credentials that it keeps."""
    with start(auth=GUARDED, cors_origins="*") as app:
        for origin in ("https://any.example", "null"):
            answer = app.request("GET", "/v2/catalog", headers=[("origin", origin), ("cookie", "a=b"), BEARER])
            assert _allowed(answer)["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in _allowed(answer)
            assert app.request("GET", "/v2/catalog", headers=[("origin", origin), ("cookie", "a=b")]).status == 401


@pytest.mark.parametrize(("trusted", "proto", "told"), [(PEER, "https", True), (PEER, "http", False),
                                                        (PEER, "", False), ("10.0.0.1", "https", False)])  # fmt: skip
def test_browsers_are_told_to_stay_with_tls_once_they_came_by_it(
    start: Start, *, trusted: str, proto: str, told: bool
) -> None:
    """As a trusted proxy says; told over plain HTTP it would be ignored, or lock somebody out."""
    with start(auth=GUARDED, trusted_proxies=trusted, cors_origins="https://good.com", allowed_hosts="good.com") as app:
        forwarded = [("x-forwarded-proto", proto), ("host", "good.com")]
        answers = [
            app.request("GET", "/health/live", headers=forwarded),
            app.request("GET", "/nothing", headers=forwarded),
            app.request("POST", "/predict", headers=forwarded),
            app.request("POST", "/predict", body=b'{"text": "a"}', headers=[*forwarded, BEARER]),
            app.request("OPTIONS", "/predict", headers=[*forwarded, *_asks("https://good.com", "POST")]),
            app.request("GET", "/nothing", headers=[forwarded[0], ("host", "evil.com")]),
        ]
        assert [answer.status for answer in answers] == [200, 404, 401, 415, 204, 400]
        assert {answer.header("strict-transport-security") is not None for answer in answers} == {told}


# Ways around.
SCANS: Sequence[tuple[str, str]] = [
    ("POST", "/predict"),
    ("POST", "/predict/"),
    ("POST", "//predict"),
    ("POST", "/./predict"),
    ("POST", "/health/../predict"),
    ("POST", "/health/..%2fpredict"),
    ("POST", "/%2e%2e/predict"),
    ("POST", "/%70redict"),
    ("POST", "/Predict"),
    ("POST", "/predict;a=b"),
    ("POST", "/predict%00"),
    ("POST", "/v2/predict/../predict"),
    ("POST", "/v2//predict"),
    ("GET", "/predict"),
    ("HEAD", "/predict"),
    ("OPTIONS", "/predict"),
    ("PUT", "/predict"),
    ("GET", "/v2/catalog"),
    ("HEAD", "/v2/catalog"),
    ("OPTIONS", "/v2/catalog"),
    ("GET", "/V2/catalog"),
    ("GET", "/admin/clients"),
    ("GET", "/admin//clients"),
    ("HEAD", "/admin/clients"),
    ("GET", "/admin/clients/"),
    ("GET", "/admin/clients/%2e%2e"),
    ("DELETE", "/admin/keys/a"),
    ("GET", "/health"),
    ("GET", "/health/nothing"),
    ("POST", "/auth/token"),
]


@pytest.mark.parametrize(("method", "path"), SCANS, ids=" ".join)
def test_no_spelling_of_a_path_gets_around_the_guard(shared: InProcess, method: str, path: str) -> None:
    """Whoever has no credential gets to nothing; most of these are no paths at all."""
    body = {"text": "fine"} if method == "POST" else None
    status = shared.request(method, path, json_body=body).status
    assert status in ({400} if path == "/auth/token" else {401, 404, 405})


def test_every_scan_draws_on_one_budget(start: Start) -> None:
    """Another path, method or spelling is no fresh start; probes go on."""
    few = LimitSettings(rate_limit="1000000/minute", address_rate_limit=f"{len(SCANS) - 2}/day")
    with start(auth=GUARDED, limits=few) as app:
        first = [app.request(method, path).status for method, path in SCANS]
        second = [app.request(method, path) for method, path in SCANS]
        counted = [path for _, path in SCANS if not path.startswith("/health/")]
        assert 429 not in first[: len(counted) - 2]
        refused = {path for (_, path), answer in zip(SCANS, second, strict=True) if answer.status == 429}
        assert refused >= set(counted)
        assert all(answer.header("retry-after") for answer in second if answer.status == 429)
        assert app.request("GET", "/health/live").status == 200
        assert app.request("POST", "/predict", json_body={"text": "a"}, headers=_with_token()).status == 200


def _with_token(**changes: Any) -> list[Header]:
    return [("content-type", "application/json"), ("authorization", f"Bearer {token(**changes).decode()}")]


def test_invented_addresses_make_no_budgets(start: Start) -> None:
    """10,000 of them from one who is no trusted proxy are one caller's requests."""
    limits = LimitSettings(rate_limit="1000000/minute", address_rate_limit="100/day")
    with start(auth=GUARDED, limits=limits, trusted_proxies="10.0.0.1") as app:
        statuses = []
        for number in range(10_000):
            address = f"{number >> 8}.{number & 255}.7.7"
            names = ("x-forwarded-for", "forwarded", "x-real-ip")
            statuses.append(app.request("POST", "/predict", headers=[(name, address) for name in names]).status)
        assert statuses == [401] * 100 + [429] * 9_900


def test_a_trusted_proxy_has_a_budget_for_each_of_its_callers(start: Start) -> None:
    """One who guesses uses up their own; one network of IPv6 is one caller."""
    limits = LimitSettings(rate_limit="1000000/minute", address_rate_limit="3/day")
    with start(auth=GUARDED, limits=limits, trusted_proxies=PEER) as app:

        def guess(address: str) -> int:
            return app.request("POST", "/predict", headers=[("x-forwarded-for", address)]).status

        assert [guess("203.0.113.7") for _ in range(5)] == [401, 401, 401, 429, 429]
        assert guess("203.0.113.8") == 401
        assert guess("198.51.100.1, 203.0.113.7") == 429
        assert [guess(f"2001:db8::{number}") for number in range(1, 6)] == [401, 401, 401, 429, 429]
        assert guess("2001:db8:0:1::1") == 401


def test_every_way_to_a_model_draws_on_one_plan(start: Start) -> None:
    """Another path to the same model, another token or another address is no fresh start."""
    limits = LimitSettings(rate_limit=f"{len(MODEL_PATHS)}/day", address_rate_limit="1000000/minute")
    with start(auth=GUARDED, limits=limits, trusted_proxies=PEER) as app:

        def ask(path: str, number: int) -> int:
            body = {"text": "fine"} if path in MODEL_PATHS[:2] else {"inputs": {"text": "fine"}}
            headers = [*_with_token(jti=f"token-{number}"), ("x-forwarded-for", f"203.0.113.{number}")]
            return app.request("POST", path, json_body=body, headers=headers).status

        assert [ask(path, number) for number, path in enumerate(MODEL_PATHS)] == [200] * len(MODEL_PATHS)
        assert [ask(path, number) for number, path in enumerate(MODEL_PATHS)] == [429] * len(MODEL_PATHS)


def test_models_that_do_not_exist_draw_on_one_plan(start: Start) -> None:
    """Names that a caller makes up make no windows."""
    limits = LimitSettings(rate_limit="5/day", address_rate_limit="1000000/minute")
    with start(auth=GUARDED, limits=limits) as app:
        statuses = [
            app.request("POST", f"/v2/predict/invented-{number}", json_body={}, headers=_with_token()).status
            for number in range(8)
        ]
        assert statuses == [404] * 5 + [429] * 3
