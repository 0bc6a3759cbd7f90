"""Input that nobody should send gets a clear error, quickly, without an echo, and changes nothing."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.support.asgi import Answer, InProcess

CANARY = "canary-7f3a"
# Ten times what the slowest takes on a slow machine: only a hang gets there.
CEILING = 1.0

BODIES = {
    "empty body": b"",
    "not json": b"love",
    "array": b"[]",
    "string": b'"text"',
    "null": b"null",
    "nan": b'{"text": NaN}',
    "infinity": b'{"text": Infinity}',
    "1e999": b'{"text": 1e999}',
    "lone surrogate": b'{"text": "\\ud800"}',
    "invalid utf-8": b'{"text": "\xff\xfe"}',
    "utf-16": '{"text": "hello"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"text": "hello"}',
    "brackets": b"[" * 100_000,
    "nested arrays": b'{"text": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "nested objects": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "long integer": b'{"text": ' + b"9" * 10_000 + b"}",
    "long float": b'{"text": 0.' + b"9" * 10_000 + b"}",
    "unknown field": b'{"text": "a", "%s": 1}' % CANARY.encode(),
    "many unknown fields": json.dumps({f"{CANARY}{i}": i for i in range(38_000)}).encode(),
    "empty text": b'{"text": ""}',
    "blank text": b'{"text": " \\t\\n "}',
    "many arrays": b'{"text": [' + b",".join([b"[]"] * 300_000) + b"]}",
    "long text": json.dumps({"text": CANARY * 2_000}).encode(),
    "number": b'{"text": 1}',
    "boolean": b'{"text": true}',
    "list": b'{"text": ["a"]}',
    "no field": b"{}",
    "trailing": b'{"text": "a"} {}',
    "truncated": b'{"text": "a"',
}


PATHS = ["/predict", "/v1/batch", "/v2/predict", "/v2/batch", "/v2/predict/iris", "/v2/feedback"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_bad_body_is_refused_with_a_problem_document(app: InProcess, path: str, body: bytes) -> None:
    """A body that cannot be a request is a 400 or 422, in time, small, and without a word of what was sent."""
    started = time.perf_counter()
    answer = app.request("POST", path, body=body)
    assert time.perf_counter() - started < CEILING
    assert answer.status in (400, 422), answer.body
    _assert_problem(answer)


@pytest.mark.parametrize(
    "truth",
    [b"NaN", b"-Infinity", b'"\\ud800"', b'"\xff"', b"[" * 50_000, b'{"a":' * 20_000, b"9" * 10_000, b"tru"],
)
def test_feedback_that_is_no_json_is_refused_whole(app: InProcess, truth: bytes) -> None:
    """Even where only one of many is to blame: who writes no JSON has not said where an item ends."""
    item = b'{"prediction_id": "01a206f1-193a-7896-8e7a-4878df603498", "truth": %s}' % truth
    for body in (item, b'{"items": [%s]}' % item):
        answer = app.request("POST", "/v2/feedback", body=body)
        assert (answer.status, answer.json()["code"]) == (400, "malformed_json"), answer.body
        _assert_problem(answer)


FIELD_BODIES = {
    "nan": "NaN",
    "infinity": "Infinity",
    "negative infinity": "-Infinity",
    "1e999": "1e999",
    "beyond float32": "1e300",
    "quoted number": '"5.1"',
    "nan as text": '"nan"',
    "boolean": "true",
    "null": "null",
    "array": "[5.1]",
    "10,000 digits": "9" * 10_000,
}


@pytest.mark.parametrize("value", FIELD_BODIES.values(), ids=FIELD_BODIES)
def test_a_value_that_is_no_finite_number_is_refused_by_field(app: InProcess, value: str) -> None:
    """A number field takes finite numbers that the estimator can hold, and the error names the field."""
    others = '"sepal width (cm)": 3, "petal length (cm)": 1, "petal width (cm)": 1'
    body = f'{{"inputs": {{"sepal length (cm)": {value}, {others}}}}}'
    answer = app.request("POST", "/v2/predict/iris", body=body.encode())
    assert answer.status in (400, 422)
    _assert_problem(answer)
    if answer.status == 422:
        assert [error["field"] for error in answer.json()["errors"]] == ["sepal length (cm)"]


def test_extreme_but_finite_numbers_are_answered(app: InProcess) -> None:
    """Negative zero, a subnormal number and an integer where a float is expected are numbers like any other."""
    row = {"sepal length (cm)": -0.0, "sepal width (cm)": 5e-324, "petal length (cm)": 1, "petal width (cm)": 1e30}
    answer = app.request("POST", "/v2/predict/iris", json_body={"inputs": row})
    assert answer.status == 200, answer.body
    assert sum(answer.json()["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize("path", ["/v1/batch", "/v2/batch", "/v2/batch/iris"])
@pytest.mark.parametrize("item", [b"{}", b'"a"', b'{"text":"a"}', b"[]", b"1"])
def test_a_batch_of_a_million_rows_is_refused_at_once(app: InProcess, path: str, item: bytes) -> None:
    """Too many rows are a 413 with a code of its own, whatever the rows are."""
    member = b"texts" if path == "/v1/batch" else b"inputs"
    body = b'{"%s":[%s]}' % (member, b",".join([item] * 1_000_000))
    started = time.perf_counter()
    answer = app.request("POST", path, body=body)
    assert time.perf_counter() - started < CEILING
    assert (answer.status, answer.json()["code"]) == (413, "too_many_rows")


@pytest.mark.parametrize(
    "item", [b"[" + b"[]," * 400 + b"[]]", b"{" + b",".join(b'"f%d":0' % i for i in range(999)) + b"}"]
)
def test_a_batch_of_costly_bad_rows_is_answered_in_time(app: InProcess, item: bytes) -> None:
    """As many of them as a body may carry."""
    rows = min(10_000, (15 << 20) // (len(item) + 1))
    body = b'{"inputs":[%s]}' % b",".join([item] * rows)
    started = time.perf_counter()
    answer = app.request("POST", "/v2/batch", body=body)
    assert time.perf_counter() - started < 5 * CEILING
    assert answer.json()["counts"] == {"succeeded": 0, "failed": rows}


def test_a_batch_of_bad_rows_lists_twenty_errors_and_names_every_row(app: InProcess) -> None:
    """The list of errors is short; the positions of the bad rows are complete."""
    answer = app.request("POST", "/v1/batch", json_body={"texts": ["fine", *[""] * 5_000, "fine", 7]})
    problem = answer.json()
    assert answer.status == 422
    assert len(problem["errors"]) == 20
    assert problem["errors"][0] == {"code": "empty", "detail": "must not be empty", "field": "text", "row": 1}
    assert problem["bad_rows"] == [*range(1, 5_001), 5_002]


def test_a_batch_around_which_something_is_wrong_is_refused_whole(app: InProcess) -> None:
    """An unknown member beside the rows is an error of the request, not of a row."""
    answer = app.request("POST", "/v2/batch", json_body={"inputs": [{"text": "a"}], "version": 1})
    assert answer.status == 422
    assert answer.json()["errors"][0]["code"] == "unknown_field"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("content-type", "text/plain")],
        [("content-type", "application/x-www-form-urlencoded")],
        [("content-type", "application/json; charset=utf-7")],
        [("content-type", "application/json"), ("content-encoding", "gzip")],
        [("content-type", "application/jsonp")],
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/v2/feedback"])
def test_a_body_that_is_not_plain_json_is_415(app: InProcess, headers: list[tuple[str, str]], path: str) -> None:
    """The content type must say JSON in UTF-8, and the body must not be compressed."""
    answer = app.request("POST", path, body=b'{"text": "fine"}', headers=headers)
    assert answer.status == 415
    _assert_problem(answer)


@pytest.mark.parametrize(
    ("method", "path", "most"),
    [
        ("POST", "/v2/feedback", 16 << 20),
        ("POST", "/predict", 1 << 20),
        ("POST", "/v2/batch", 16 << 20),
    ],
)
def test_a_body_of_unknown_length_is_counted(app: InProcess, method: str, path: str, most: int) -> None:
    """Whoever reads it: the route's own bound, to the byte."""
    chunks = [b" " * (1 << 16)] * (most >> 16)
    answer = app.request(method, path, body=chunks)
    assert answer.status == 400, answer.body
    answer = app.request(method, path, body=[*chunks, b" ", b" " * 1_000])
    assert (answer.status, answer.json()["code"], answer.json()["limit"]) == (413, "body_too_large", most)
    assert answer.header("connection") == "close"
    _assert_problem(answer)
    answer = app.request(method, path, body=b"", headers=[("content-length", str(most + 1)), JSON])
    assert (answer.status, answer.json()["limit"]) == (413, most)


JSON = ("content-type", "application/json")


@pytest.mark.parametrize("path", ["/v2/catalog", "/health/live", "/nothing"])
def test_a_body_that_nobody_reads_does_no_harm(app: InProcess, path: str) -> None:
    """Where none belongs it is ignored, and refused where it says that it is too large."""
    answer = app.request("GET", path, body=[b" " * (1 << 20), b" "])
    assert answer.status in (200, 404)
    assert app.request("GET", path, headers=[("content-length", str((1 << 20) + 1))]).status == 413


@pytest.mark.parametrize(
    "value", ["application/json", "Application/JSON;charset=UTF-8", 'application/json; charset="utf-8"']
)
def test_json_may_be_announced_in_any_of_its_spellings(app: InProcess, value: str) -> None:
    """Case, a charset of UTF-8 and quotes change nothing."""
    answer = app.request("POST", "/predict", body=b'{"text": "fine"}', headers=[("content-type", value)])
    assert answer.status == 200


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "a" * 300, "iris%00", "iris\n", "CON", "~", "C:", "..%2f..%2fetc", "é", "{model}"]
)
@pytest.mark.parametrize("route", ["/v2/predict/", "/v2/batch/", "/v2/catalog/"])
def test_a_model_name_from_a_path_never_reaches_the_file_system(app: InProcess, route: str, name: str) -> None:
    """Any name that is not a model's is a 404 that names the models and not the name."""
    method = "GET" if "catalog" in route else "POST"
    answer = app.request(method, route + name, json_body=None if method == "GET" else {"inputs": {}})
    assert answer.status == 404
    _assert_problem(answer)
    assert name not in answer.body.decode()


@pytest.mark.parametrize(
    "query",
    ["version=", "version=99999999999999999999", "version=-1", "version=1.0", "version=%ff", "version=1&version=2",
     "verison=1", "version=1;2", "version=../1", "version=%00", "&" * 50, "version=①"],
)  # fmt: skip
def test_a_version_that_is_none_is_refused(app: InProcess, query: str) -> None:
    """A version is a number or an alias, given once; anything else is a 404 or 422 without an echo."""
    answer = app.request("POST", "/v2/predict", json_body={"inputs": {"text": "a"}}, query=query)
    assert answer.status in (404, 422)
    _assert_problem(answer)


def test_a_404_names_the_versions_that_exist(app: InProcess) -> None:
    """Whoever asks for a version that is not served learns which are."""
    answer = app.request("POST", "/v2/predict/sentiment", json_body={"inputs": {"text": "a"}}, query="version=9")
    problem = answer.json()
    assert (answer.status, problem["code"]) == (404, "version_not_found")
    assert problem["versions"] == [1, 2]
    assert problem["aliases"] == {"champion": 2, "previous": 1, "v1": 1}


@pytest.mark.parametrize(
    "path", ["/nothing", "/v2", "/v2/models", "/v2/health/ready", "/predict/", "//predict", "/V1/predict"]
)
def test_a_path_that_is_none_is_a_404_problem(app: InProcess, path: str) -> None:
    """There are no redirects and no near misses; the paths of the Open Inference Protocol are still free."""
    answer = app.request("POST", path, json_body={})
    assert (answer.status, answer.json()["code"]) == (404, "not_found")
    _assert_problem(answer)


@pytest.mark.parametrize("given", ["abc-123", "A.b_c-9", "x" * 64])
@pytest.mark.parametrize(("method", "path"), [("POST", "/predict"), ("GET", "/health/live"), ("GET", "/nothing")])
def test_a_well_formed_request_id_is_kept(app: InProcess, method: str, path: str, given: str) -> None:
    """The caller's id comes back on hot routes, on cold ones and with errors."""
    answer = app.request(method, path, headers=[("x-request-id", given)])
    assert answer.header("x-request-id") == given
    assert [name for name, _ in answer.headers].count("x-request-id") == 1


@pytest.mark.parametrize("given", ["", "a b", "é", "x" * 65, 'a"b', "a\tb", "<b>"])
def test_a_request_id_that_is_not_well_formed_is_replaced(app: InProcess, given: str) -> None:
    """What could break a header or a log line is never repeated."""
    answer = app.request("GET", "/health/live", headers=[("x-request-id", given)])
    made = answer.header("x-request-id")
    assert made is not None
    assert made != given
    assert len(made) == 32


@pytest.fixture
def counted(app: InProcess) -> Iterator[InProcess]:
    """The application; afterwards, no series has appeared beyond those that routes and models bound."""
    before = _series(app)
    yield app
    assert _series(app) - before <= 2


def test_paths_and_methods_make_no_series_of_their_own(counted: InProcess) -> None:
    """A scan of a thousand paths, methods and models adds the series of one unmatched path and one unknown model."""
    for i in range(500):
        counted.request("GET", f"/scan/{i}/")
        counted.request("POST", f"/v2/predict/model-{i}", json_body={"inputs": {}})
        counted.request(f"METHOD{i}", f"/predict/{i}")


def _series(app: InProcess) -> int:
    text = app.request("GET", "/metrics").body.decode()
    return len([line for line in text.splitlines() if line.startswith("http_requests_total{")])


def _assert_problem(answer: Answer) -> None:
    """Every error is a problem document with the request's id, small, and says nothing that it should not."""
    assert answer.header("content-type") == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status
    assert problem["request_id"] == answer.header("x-request-id")
    assert {"type", "title", "detail", "code"} <= problem.keys()
    assert len(problem.get("errors", [])) <= 20
    assert len(answer.body) < 4_096
    text = answer.body.decode()
    for leak in (CANARY, "Traceback", "/app/", "site-packages", ".py", "pydantic"):
        assert leak not in text
