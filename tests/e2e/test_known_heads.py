"""A head that the service has seen before opens nothing: tokens, limits and ids are those of each request."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.outside import bearer
from tests.support.raw import Caller, post
from tests.support.server import Server, running_server
from tests.support.tokens import SECRET, token
from tests.support.versions import write_classifier

PATH = "/v2/predict/toy"
SMALL, BIG = b'{"inputs":{"x":1.5}}', b'{"inputs":{"x":9e9}}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that asks for tokens, and lets a caller have forty rows an hour."""
    folder = tmp_path_factory.mktemp("heads")
    write_classifier(folder / "models")
    environment = {"AUTH_MODE": "jwt", "JWT_SECRET": SECRET, "RATE_LIMIT": "40/hour", "DEFAULT_MODEL": "toy"}
    with running_server(folder / "models", folder / "log", environment, arguments=["--migrate"]) as started:
        yield started


def _statuses(caller: Caller, data: bytes, times: int) -> list[int]:
    found = []
    for _ in range(times):
        caller.send(data)
        found.append(caller.read().status)
    return found


def test_a_token_that_is_revoked_opens_nothing_with_the_same_bytes(server: Server) -> None:
    """On the connection on which it was good a moment ago."""
    data = post(PATH, SMALL, bearer(sub="revoked", jti="to-be-revoked"))
    with Caller(server.port) as caller:
        assert _statuses(caller, data, 5) == [200] * 5
        with server.client() as client:
            admin = {"authorization": f"Bearer {token(sub='root', scope='admin').decode()}"}
            revoked = client.post("/admin/revocations", json={"jti": "to-be-revoked"}, headers=admin)
            assert revoked.status_code < 300, revoked.text
        assert _statuses(caller, data, 2) == [401, 401]


def test_a_token_that_has_expired_opens_nothing_with_the_same_bytes(server: Server) -> None:
    """From the second on that it names."""
    until = int(time.time()) + 2
    data = post(PATH, SMALL, bearer(sub="expiring", exp=until))
    with Caller(server.port) as caller:
        assert _statuses(caller, data, 3) == [200] * 3
        while time.time() < until:
            time.sleep(until - time.time())
        assert _statuses(caller, data, 2) == [401, 401]


def test_the_same_bytes_count_against_the_plan_each_time(server: Server) -> None:
    """Forty are answered and the next refused; a caller whose token differs in a byte has a plan of their own."""
    with Caller(server.port) as caller:
        assert _statuses(caller, post(PATH, SMALL, bearer(sub="busy")), 42) == [200] * 40 + [429] * 2
        assert _statuses(caller, post(PATH, SMALL, bearer(sub="calm")), 2) == [200, 200]


def test_each_request_has_an_id_of_its_own_and_the_answer_to_its_own_body(server: Server) -> None:
    """Eight connections at once, in turns with a body of one length and another answer."""

    def ask(number: int) -> list[tuple[str, str]]:
        heads, seen = bearer(sub=f"caller-{number}"), []
        with Caller(server.port) as caller:
            for turn in range(36):
                caller.send(post(PATH, (SMALL, BIG)[(turn + number) % 2], heads))
                answer = caller.read()
                document = json.loads(answer.body)
                assert document["prediction"] == ("small", "big")[(turn + number) % 2]
                seen.append((answer.headers["x-request-id"], document["id"]))
        return seen

    with ThreadPoolExecutor(8) as pool:
        seen = [pair for found in pool.map(ask, range(8)) for pair in found]
    assert len({request for request, _ in seen}) == len({row for _, row in seen}) == 8 * 36


def test_a_callers_own_id_is_repeated(server: Server) -> None:
    """It is part of the head, so the same head has the same one."""
    data = post(PATH, SMALL, bearer(sub="naming"), "X-Request-ID: mine-7")
    with Caller(server.port) as caller:
        for _ in range(3):
            caller.send(data)
            assert caller.read().headers["x-request-id"] == "mine-7"
