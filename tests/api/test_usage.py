"""What a caller has used, what is left, and what is refused when nothing is: for each caller and each model."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.auth.clients import Clients
from app.config import AuthSettings, LimitSettings, ModelSettings, Settings, StorageSettings
from app.storage.migrations import upgrade
from tests.support.asgi import Answer, InProcess, in_process
from tests.support.demo import MODULES
from tests.support.tokens import SECRET, token

# Days, so that no window ends in the middle of a test.
PLAN = "20/day"
DAY = 86_400
IRIS = {
    "sepal length (cm)": 5.1,
    "sepal width (cm)": 3.5,
    "petal length (cm)": 1.4,
    "petal width (cm)": 0.2,
}


@pytest.fixture(scope="module")
def limited(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """Twenty rows a day for each caller and model."""
    folder = tmp_path_factory.mktemp("usage")
    url = SecretStr(f"sqlite:///{folder}/presage.db")
    storage = StorageSettings(database_url=url, journal_dir=folder / "journal")
    upgrade(storage)
    settings = Settings(
        auth=AuthSettings(jwt_secret=SecretStr(SECRET)),
        limits=LimitSettings(rate_limit=PLAN),
        models=ModelSettings(models_dir=models_dir, model_modules=(MODULES,)),
        storage=storage,
    )
    with in_process(settings) as app:
        yield app


class Caller:
    """Somebody with a token."""

    def __init__(self, app: InProcess, name: str, scope: str = "predict") -> None:
        self.app = app
        self.name = name
        self._token = token(sub=name, scope=scope, jti=f"token of {name}").decode()

    def post(self, path: str, json_body: Any = None, body: bytes | None = None) -> Answer:
        """With JSON, or with what is none."""
        headers = [("authorization", f"Bearer {self._token}"), ("content-type", "application/json")]
        return self.app.request("POST", path, json_body=json_body, body=body, headers=headers)

    def one(self) -> Answer:
        """A row for iris."""
        return self.post("/v2/predict/iris", {"inputs": IRIS})

    def batch(self, rows: int) -> Answer:
        """Rows for iris."""
        return self.post("/v2/batch/iris", {"inputs": [IRIS] * rows})

    def usage(self) -> dict[str, Any]:
        """What the service says."""
        answer = self.app.request("GET", "/v2/usage", headers=[("authorization", f"Bearer {self._token}")])
        assert answer.status == 200
        body: dict[str, Any] = answer.json()
        return body

    def used(self, name: str = "iris") -> int:
        """Rows that one model has cost."""
        windows = {window["name"]: window["used"] for window in self.usage()["usage"]}
        used: int = windows.get(name, 0)
        return used


@pytest.fixture
def caller(limited: InProcess, request: pytest.FixtureRequest) -> Caller:
    """A caller whom nobody has seen."""
    return Caller(limited, re.sub(r"\W", "-", request.node.name))


def test_who_has_used_nothing_learns_who_they_are(limited: InProcess) -> None:
    """Their name, their scopes, their plan; to have asked is a request."""
    body = Caller(limited, "newcomer", "read predict:iris").usage()
    (window,) = body.pop("usage")
    assert body == {"principal": "newcomer", "scopes": ["predict:iris", "read"], "plan": PLAN}
    assert 0 < window.pop("reset_seconds") <= 2 * DAY
    assert window == {"name": "requests", "limit": 20, "window_seconds": DAY, "used": 1, "remaining": 19}


def test_predictions_are_counted_by_model(caller: Caller) -> None:
    """Rows, through every protocol; two models share nothing."""
    for _ in range(3):
        assert caller.one().status == 200
    assert caller.batch(4).status == 200
    assert caller.post("/predict", {"text": "fine"}).status == 200
    assert caller.post("/batch-predict", {"texts": ["fine", "sad"]}).status == 200
    assert caller.post("/v2/predict", {"inputs": {"text": "fine"}}).status == 200
    windows = {window["name"]: window for window in caller.usage()["usage"]}
    assert {name: window["used"] for name, window in windows.items()} == {"iris": 7, "sentiment": 4, "requests": 1}
    assert all(window["used"] + window["remaining"] == window["limit"] == 20 for window in windows.values())


def test_a_plan_of_ones_own_counts(limited: InProcess) -> None:
    """Instead of the one for everybody; and another one from when it is given."""
    clients = Clients(limited.app.services.database)
    clients.add("planned", by="root", plan="7/day")
    limited.run(limited.app.services.directory.refreshed())
    caller = Caller(limited, "planned")
    answer = caller.batch(5)
    assert answer.status == 200
    assert answer.header("ratelimit-policy") == f'"client";q=7;w={DAY}'
    assert caller.batch(3).status == 429
    body = caller.usage()
    assert body["plan"] == "7/day"
    assert {window["limit"] for window in body["usage"]} == {7}
    clients.change("planned", by="root", plan="30/day")
    limited.run(limited.app.services.directory.refreshed())
    assert caller.usage()["plan"] == "30/day"
    assert caller.batch(25).status == 200


def _left(answer: Answer) -> int:
    match = re.fullmatch(r'"default";r=(\d+);t=(\d+)', answer.header("ratelimit") or "")
    assert match is not None
    assert 0 < int(match[2]) <= 2 * DAY
    return int(match[1])


def test_each_answer_says_what_is_left(caller: Caller) -> None:
    """Less by what it cost, whether it was a prediction or a refusal."""
    answers = [caller.one(), caller.one(), caller.batch(5), caller.post("/v2/predict/iris", {}), caller.one()]
    assert [answer.status for answer in answers] == [200, 200, 200, 422, 200]
    assert [_left(answer) for answer in answers] == [19, 18, 13, 12, 11]
    assert {answer.header("ratelimit-policy") for answer in answers} == {f'"default";q=20;w={DAY}'}


def test_the_row_after_the_last_is_refused(caller: Caller) -> None:
    """With the plan, and when to come back; other models are not closed."""
    assert [caller.one().status for _ in range(20)] == [200] * 20
    answer = caller.one()
    body = answer.json()
    assert (answer.status, body["code"]) == (429, "rate_limited")
    assert answer.header("content-type") == "application/problem+json"
    assert "20 rows" in body["detail"]
    assert "iris" in body["detail"]
    assert 1 <= int(answer.header("retry-after") or 0) <= 2 * DAY
    for name in ("ratelimit", "ratelimit-policy"):
        assert len([value for key, value in answer.headers if key == name]) == 1
    assert _left(answer) == 0
    assert caller.post("/predict", {"text": "fine"}).status == 200
    assert caller.used() == 20


def test_a_batch_costs_its_rows_before_it_is_worked_on(caller: Caller) -> None:
    """One that no longer fits is refused whole and costs nothing; a smaller one passes."""
    assert caller.batch(18).status == 200
    for _ in range(3):
        answer = caller.batch(3)
        assert (answer.status, answer.json()["code"]) == (429, "rate_limited")
        assert int(answer.header("retry-after") or 0) >= 1
    assert caller.used() == 18
    assert caller.batch(2).status == 200
    assert caller.used() == 20


@pytest.mark.parametrize("path", ["/v2/batch", "/v1/batch", "/batch-predict"])
def test_a_batch_that_never_fits_is_too_large(caller: Caller, path: str) -> None:
    """To wait would not help: it is no 429, and costs nothing."""
    member = "inputs" if "v2" in path else "texts"
    rows: list[Any] = [{"text": "fine"}] * 21 if "v2" in path else ["fine"] * 21
    answer = caller.post(path, {member: rows})
    assert (answer.status, answer.json()["code"]) == (413, "batch_exceeds_plan")
    assert answer.header("retry-after") is None
    assert caller.used("sentiment") == 0
    assert caller.post(path, {member: rows[:20]}).status == 200
    assert caller.used("sentiment") == 20


def test_rows_that_do_not_fit_are_rows(caller: Caller) -> None:
    """To find out that they do not is work; in a batch of which others do, each has its price."""
    assert caller.post("/v2/batch/iris", {"inputs": [IRIS, {}, {}]}).status == 200
    assert caller.used() == 3


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"inputs": {}}', b'{"inputs": 1}'])
@pytest.mark.parametrize("path", ["/v2/predict/iris", "/v2/batch/iris"])
def test_junk_costs_a_request(limited: InProcess, path: str, body: bytes) -> None:
    """Otherwise whoever sends nothing else could send it for ever."""
    caller = Caller(limited, f"junk-{len(path)}-{body.hex()}")
    statuses = [caller.post(path, body=body).status for _ in range(22)]
    assert set(statuses[:20]) <= {400, 422}
    assert statuses[20:] == [429, 429]


def test_a_body_that_is_no_json_costs_a_request(caller: Caller) -> None:
    """By its name, before it is read."""
    headers = [("authorization", f"Bearer {token(sub=caller.name).decode()}"), ("content-type", "text/plain")]
    answer = caller.app.request("POST", "/v2/predict/iris", body=b"{}", headers=headers)
    assert answer.status == 415
    assert caller.used() == 1


def test_a_name_that_no_model_has_is_no_window(caller: Caller) -> None:
    """Names are the caller's own: what they cost, they cost together."""
    for number in range(5):
        assert caller.post(f"/v2/predict/name-{number}", {"inputs": {}}).status == 404
    windows = {window["name"]: window["used"] for window in caller.usage()["usage"]}
    assert windows == {"requests": 6}


def test_what_is_not_permitted_costs_a_request(limited: InProcess) -> None:
    """And no row of others."""
    caller = Caller(limited, "reader", "read")
    assert [caller.one().status for _ in range(21)] == [403] * 20 + [429]


def test_callers_share_nothing(limited: InProcess) -> None:
    """One who is out of rows leaves another all of theirs; two tokens of one are one."""
    greedy, modest = Caller(limited, "greedy"), Caller(limited, "modest")
    assert greedy.batch(20).status == 200
    assert greedy.one().status == 429
    assert modest.one().status == 200
    assert modest.used() == 1
    assert Caller(limited, "greedy", "predict read").one().status == 429


def test_a_key_and_a_token_of_one_client_are_one_caller(limited: InProcess) -> None:
    """The plan is the client's, however it shows who it is."""
    clients = Clients(limited.app.services.database)
    clients.add("both", by="root")
    key = clients.add_key("both", by="root")
    limited.run(limited.app.services.directory.refreshed())
    caller = Caller(limited, "both")
    assert caller.batch(19).status == 200
    headers = [("x-api-key", key), ("content-type", "application/json")]
    by_key = [limited.request("POST", "/v2/predict/iris", json_body={"inputs": IRIS}, headers=headers) for _ in "12"]
    assert [answer.status for answer in by_key] == [200, 429]
    assert caller.one().status == 429
