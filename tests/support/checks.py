"""Checks: promises about security, each asked of a service from outside, over a socket.

They know routes and tokens, and nothing of how a service is made. So the same check can be put to the real one, which
must keep the promise, and to one that is known not to, which proves that the check can fail.
"""

import http.client
import json
import select
import socket
import threading
import time
from collections.abc import Callable

from tests.support import forged
from tests.support.outside import (
    CEILING_SECONDS,
    TEXT,
    Target,
    assert_safe,
    bearer,
    flood,
    get,
    predict,
    request,
    strict_json,
    with_flat_memory,
    without_request_id,
)
from tests.support.raw import RawAnswer, post, send_raw
from tests.support.tokens import token

_PROMPT_SECONDS = 0.5
_FIELDS = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)")
_SCANS = 750
_FEW_SERIES = 5
# Those that everybody knows, and then those that only parsers know.
_METHODS = ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "MKCOL", "PURGE", "SEARCH", "LOCK", "REPORT")


def a_hostile_cookie_holds_nobody_up(target: Target) -> None:
    """Some Pythons take seconds to parse a cookie of backslashes; other connections are answered meanwhile."""
    for size in (30_000, 64_000):
        cookie = 'Cookie: a="' + "\\" * size + '"'
        attack = threading.Thread(target=send_raw, args=(target.port, request("GET", "/health/live", cookie)))
        attack.start()
        slowest = 0.0
        while True:
            slowest = max(slowest, get(target, "/health/live").seconds)
            if not attack.is_alive():
                break
        assert slowest < _PROMPT_SECONDS, f"held up for {slowest:.1f} s by {size} bytes"


def headers_have_a_bound(target: Target) -> None:
    """40 MB of them, or 100,000, are refused, and kept nowhere."""
    large = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 1_000_000) for number in range(40))
    head = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"

    def attack() -> None:
        for headers in (large, b"a: b\r\n" * 100_000):
            answer = send_raw(target.port, head + headers + b"\r\n")
            assert answer.status in (400, 431), f"{len(headers)} bytes of headers were answered {answer.status}"

    with_flat_memory(target, attack)


def a_url_has_a_bound(target: Target) -> None:
    """1 MB of it is 414."""

    def attack() -> None:
        for url in ("/" + "a" * 1_000_000, "/health/live?" + "a" * 1_000_000):
            answer = get(target, url)
            assert answer.status == 414, f"a megabyte of URL was answered {answer.status}"

    with_flat_memory(target, attack)


def a_body_without_a_credential_is_not_read(target: Target) -> None:
    """100 MB, announced or in chunks, are refused at once, kept nowhere, and end the connection."""
    piece = b" " * (1 << 20)
    announced = (post("/predict", b"", f"Content-Length: {100 << 20}"), piece)
    in_chunks = (post("/predict", b"", "Transfer-Encoding: chunked"), b"%x\r\n%s\r\n" % (len(piece), piece))

    def attack() -> None:
        for head, part in (announced, in_chunks):
            started = time.perf_counter()
            received = flood(target.port, head, part, 100)
            seconds = time.perf_counter() - started
            status = int(received.split(b" ", 2)[1])
            assert status in (401, 413), f"a body from nobody was answered {status}"
            assert seconds < CEILING_SECONDS, f"it took {seconds:.1f} s"

    with_flat_memory(target, attack)


def numbers_are_finite(target: Target) -> None:
    """What is no finite number is refused by the name of its field; answers are JSON, strictly."""
    for literal in ("NaN", "Infinity", "-Infinity", "1e999", '"nan"', '"5.1"', "true", "null"):
        answer = _iris(target, literal)
        assert answer.status == 422, f"{literal} was answered {answer.status}"
        assert _FIELDS[0] in answer.body.decode(), f"{literal}: the field is not named"
        strict_json(answer)
    for literal in ("-0.0", "5e-324", "1e30"):
        answer = _iris(target, literal)
        assert answer.status == 200, f"{literal} was answered {answer.status}"
        strict_json(answer)


def the_token_has_no_say_in_its_algorithm(target: Target) -> None:
    """It may not go unsigned, and a public key is no secret to sign with."""
    _assert_refused(target, forged.with_an_algorithm_of_their_own(target.public_key, "rsa"))


def the_token_has_no_say_in_its_key(target: Target) -> None:
    """What its header asks for is refused, and no address that it names is called."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        _assert_refused(target, forged.with_headers_of_their_own(address))
        called, _, _ = select.select([listener], [], [], 0.2)
        assert not called, "an address from a token was called"


def claims_are_required(target: Target) -> None:
    """A token without an end, for somebody else, or of another kind is refused."""
    _assert_refused(target, forged.with_claims_that_do_not_do())


def a_token_has_one_spelling(target: Target) -> None:
    """A reader that is lenient with signatures lets a revoked token in again."""
    good = token()
    assert predict(target, good).status == 200, "a good token is refused"
    _assert_refused(target, forged.spelt_in_another_way(good))


def a_prediction_belongs_to_who_asked(target: Target) -> None:
    """To others it looks like one that does not exist, unless they may read everything."""
    asked = predict(target, token(sub="alice"))
    mine = f"/v2/predictions/{asked.headers['x-prediction-id']}"
    nobodys = "/v2/predictions/01890a5d-ac96-774b-bcce-b302099a8057"
    assert get(target, mine, bearer(sub="alice")).status == 200
    assert get(target, mine, bearer(sub="bob", scope="read")).status == 200
    others, none = get(target, mine, bearer(sub="bob")), get(target, nobodys, bearer(sub="bob"))
    assert others.status == 404, f"somebody else's prediction was answered {others.status}"
    assert without_request_id(others) == without_request_id(none), "it can be told from one that does not exist"


def administration_is_for_administrators(target: Target) -> None:
    """Nobody makes clients, or sees them, without the scope; saying in the body who one is changes nothing."""
    body = json.dumps({"name": "mallory", "scopes": ["predict"], "role": "admin", "tenant_id": "other"}).encode()
    claimed = json.dumps({"text": "fine", "role": "admin", "scopes": ["admin"], "tenant_id": "other"}).encode()
    user = bearer(scope="predict feedback read")
    predict(target, token(sub="mallory"), claimed)
    seen = get(target, "/admin/clients", user).status
    assert seen == 403, f"the list of clients was answered {seen}"
    made = send_raw(target.port, post("/admin/clients", body, user)).status
    assert made == 403, f"a client made by a user was answered {made}"
    send_raw(target.port, post("/admin/clients", body, bearer(scope="admin")))
    listed = get(target, "/admin/clients", bearer(scope="admin")).body
    assert b"tenant_id" not in listed, "an unknown member was kept"


def errors_repeat_nothing(target: Target) -> None:
    """What callers send is in no answer, and in nothing that operators read later."""
    canary = "canary-7f3a9c"
    quoted = json.dumps(canary)
    good = bearer()
    requests = {
        "a password": post("/predict", f'{{"text": 1, "password": {quoted}}}'.encode(), good),
        "a wrong type": post("/predict", f'{{"text": [{quoted}]}}'.encode(), good),
        "half a document": post("/predict", f'{{"text": {quoted}'.encode(), good),
        "a lone surrogate": post("/predict", f'{{"text": 1, "{canary}": "\\ud800"}}'.encode(), good),
        "the name of a field": post("/predict", f'{{"text": "a", {quoted}: 1}}'.encode(), good),
        "a feature": post("/v2/predict/iris", f'{{"inputs": {{"sepal length (cm)": {quoted}}}}}'.encode(), good),
        "a token": post("/predict", TEXT, f"Authorization: Bearer {canary}.{canary}.{canary}"),
        "a password for Basic": request("GET", "/admin/clients", f"Authorization: Basic {canary}"),
        "an API key": request("GET", "/admin/clients", f"X-API-Key: presage_{canary}_{canary}"),
        "a path": request("GET", f"/{canary}", good),
        "an id": request("GET", f"/v2/predictions/{canary}", good),
        "a query": request("GET", f"/v2/predictions/1?size={canary}", good),
        "a media type": post("/predict", TEXT, f"Content-Type: application/{canary}", good),
        "a host": request("GET", "/nothing", good, host=f"{canary}.example"),
    }
    for name, sent in requests.items():
        answer = send_raw(target.port, sent)
        assert answer.status < 500, f"{name} was answered {answer.status}"
        assert canary not in f"{answer.headers}{answer.body!r}", f"{name} was repeated"
    for path in ("/metrics", "/openapi.json"):
        assert canary.encode() not in get(target, path).body, f"it stands in {path}"


def every_answer_has_security_headers(target: Target) -> None:
    """Good or bad, whoever made it; and every error is a problem document with the request's id."""
    good = bearer()
    requests = {
        200: request("GET", "/health/live"),
        400: post("/predict", b"{", good),
        401: post("/predict", TEXT),
        404: request("GET", "/nothing"),
        405: request("DELETE", "/predict", good),
        413: post("/predict", b"", good, f"Content-Length: {100 << 20}"),
        414: request("GET", "/" + "a" * 100_000),
        415: post("/predict", TEXT, "Content-Encoding: gzip", good),
        422: post("/predict", b'{"text": 1}', good),
        431: request("GET", "/health/live", *["X: " + "a" * 1_000] * 90),
    }
    for status, sent in requests.items():
        answer = send_raw(target.port, sent)
        assert_safe(answer)
        assert answer.status == status, f"{answer.status} instead of {status}"


def pages_of_others_may_not_call(target: Target) -> None:
    """A page of anybody is not told that it may use a browser's credentials, or read an answer."""
    for origin in ("https://evil.example", "null"):
        for sent in (
            request("GET", "/health/live", f"Origin: {origin}", "Cookie: session=1"),
            request("OPTIONS", "/predict", f"Origin: {origin}", "Access-Control-Request-Method: POST"),
        ):
            headers = send_raw(target.port, sent).headers
            told = [name for name in headers if name.startswith("access-control-allow")]
            assert not told, f"{origin} was told {told}"


def scans_make_no_series(target: Target) -> None:
    """3,000 made-up paths, methods, models and hosts add next to nothing to what is exposed."""
    _scan(target, range(_METHODS.index("PROPFIND") + 1))
    before = _series(target)
    _scan(target, range(_SCANS))
    added = _series(target) - before
    assert added <= _FEW_SERIES, f"{added} series were added"


def _assert_refused(target: Target, tokens: forged.Tokens) -> None:
    """Each in the same way: which of the reasons it was is nobody's business."""
    answers = {name: predict(target, given) for name, given in tokens.items()}
    taken = [f"{name}: {answer.status}" for name, answer in answers.items() if answer.status != 401]
    assert not taken, f"not refused: {', '.join(taken)}"
    challenges = {answer.headers.get("www-authenticate") for answer in answers.values()}
    assert challenges == {'Bearer realm="presage", error="invalid_token"'}, f"the challenges are {challenges}"
    bodies = {without_request_id(answer) for answer in answers.values()}
    assert len(bodies) == 1, f"the answers differ: {bodies}"


def _iris(target: Target, literal: str) -> RawAnswer:
    members = [f'"{_FIELDS[0]}": {literal}', *(f'"{name}": 1.5' for name in _FIELDS[1:])]
    return send_raw(target.port, post("/v2/predict/iris", f'{{"inputs": {{{", ".join(members)}}}}}'.encode(), bearer()))


def _scan(target: Target, numbers: range) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=CEILING_SECONDS)
    for number in numbers:
        for method, path, host in (
            ("GET", f"/v2/predictions/scan-{number}/", "localhost"),
            ("GET", f"/scan/{number}", "localhost"),
            (_METHODS[number % len(_METHODS)], f"/v2/catalog/model-{number}", "localhost"),
            ("GET", "/nothing", f"host-{number}.example"),
        ):
            connection.request(method, path, headers={"Host": host})
            connection.getresponse().read()
    connection.close()


def _series(target: Target) -> int:
    lines = get(target, "/metrics").body.decode().splitlines()
    return sum(1 for line in lines if line and not line.startswith("#"))


ALL: tuple[Callable[[Target], None], ...] = (
    a_hostile_cookie_holds_nobody_up,
    headers_have_a_bound,
    a_url_has_a_bound,
    a_body_without_a_credential_is_not_read,
    numbers_are_finite,
    the_token_has_no_say_in_its_algorithm,
    the_token_has_no_say_in_its_key,
    claims_are_required,
    a_token_has_one_spelling,
    a_prediction_belongs_to_who_asked,
    administration_is_for_administrators,
    errors_repeat_nothing,
    every_answer_has_security_headers,
    pages_of_others_may_not_call,
    scans_make_no_series,
)
