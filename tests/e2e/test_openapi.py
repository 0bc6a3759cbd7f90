"""The OpenAPI document is true: what it says of the loaded models, and what it promises of every answer."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support.demo import MODULES
from tests.support.server import ROOT, Server, running_server
from tests.support.tokens import SECRET, token

# What misbehaves on purpose breaks promises on purpose.
MISBEHAVING = "slow|brittle"


ENVIRONMENT = {"MODEL_MODULES": MODULES, "LOG_FORMAT": "json", "AUTH_MODE": "jwt", "JWT_SECRET": SECRET}


@pytest.fixture(scope="module")
def server(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that asks for credentials, as the document says."""
    log = tmp_path_factory.mktemp("openapi") / "log"
    with running_server(models_dir, log, ENVIRONMENT, arguments=["--migrate"]) as started:
        yield started


@pytest.fixture
def changing_server(models_dir: Path, tmp_path: Path) -> Iterator[Server]:
    """One whose models are its own, since administrators may change what their names stand for."""
    shutil.copytree(models_dir, tmp_path / "models")
    with running_server(tmp_path / "models", tmp_path / "log", ENVIRONMENT, arguments=["--migrate"]) as started:
        yield started


def _bearer() -> str:
    """A credential with which everything may be done."""
    return f"Bearer {token(scope='predict feedback read admin').decode()}"


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    """The document as it is served."""
    with server.client() as client:
        found: dict[str, Any] = client.get("/openapi.json").json()
        return found


def test_generated_requests_get_the_answers_that_the_document_promises(changing_server: Server, tmp_path: Path) -> None:
    """Schemathesis: no 5xx, every answer matches its schema, what does not fit is refused, what fits is accepted.

    But for a caller who leaves no time for an answer.
    """
    command: list[str | Path] = [
        Path(sys.executable).with_name("schemathesis"),
        "--config-file",
        ROOT / "tests/e2e/schemathesis.toml",
        "run",
        f"{changing_server.url}/openapi.json",
        "--header",
        f"Authorization: {_bearer()}",
        "--exclude-path-regex",
        MISBEHAVING,
        "--max-examples",
        "8",
        "--seed",
        "1",
        "--max-failures",
        "5",
    ]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    lines = [line[:300] for line in ended.stdout.splitlines()]
    assert ended.returncode == 0, "\n".join(lines[-80:])
    assert "No issues found" in ended.stdout or "passed" in ended.stdout


def test_each_model_has_paths_of_its_own(document: dict[str, Any]) -> None:
    """A templated path would hide what a model takes."""
    paths = document["paths"]
    for name in ("sentiment", "iris", "double"):
        assert f"/v2/predict/{name}" in paths
        assert f"/v2/batch/{name}" in paths
    assert not [path for path in paths if "{model}" in path and path.startswith(("/v2/predict/", "/v2/batch/"))]


def test_a_models_fields_ranges_and_labels_are_in_the_document(document: dict[str, Any]) -> None:
    """The form on the docs page has the model's own fields, and the answer its own labels."""
    operation = document["paths"]["/v2/predict/iris"]["post"]
    body = _resolve(document, operation["requestBody"]["content"]["application/json"]["schema"])
    fields = _resolve(document, body["properties"]["inputs"])["properties"]
    assert list(fields) == ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"]
    assert fields["petal width (cm)"]["description"] == "Training saw 0.1 to 2.5."
    answer = _resolve(document, operation["responses"]["200"]["content"]["application/json"]["schema"])
    assert answer["properties"]["prediction"]["enum"] == ["setosa", "versicolor", "virginica"]
    assert answer["properties"]["probabilities"]["required"] == ["setosa", "versicolor", "virginica"]


def test_a_regressions_answer_is_a_number_without_probabilities(document: dict[str, Any]) -> None:
    """With its unit."""
    operation = document["paths"]["/v2/predict/double"]["post"]
    answer = _resolve(document, operation["responses"]["200"]["content"]["application/json"]["schema"])
    assert answer["properties"]["prediction"] == {"title": "value", "type": "number", "description": "in m"}
    assert "probabilities" not in answer["properties"]


def test_the_versions_that_are_served_are_in_the_document(document: dict[str, Any]) -> None:
    """As the choices of the query parameter."""
    parameters = document["paths"]["/v2/predict/sentiment"]["post"]["parameters"]
    (parameter,) = [one for one in parameters if one["in"] == "query"]
    assert parameter["schema"]["enum"] == ["champion", "previous", "v1", "1", "2"]


def test_what_predicts_takes_a_time_and_says_what_comes_of_it(document: dict[str, Any]) -> None:
    """The header with what holds without it, and the three answers to who cannot be answered in time; nowhere else."""
    timed = {}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "X-Request-Timeout-Ms":
                    timed[path] = parameter["schema"]["default"]
                    assert {"422", "429", "503", "504"} <= set(operation["responses"])
                    assert operation["responses"]["504"]["description"] == "The time for an answer is over"
    assert {path for path, most in timed.items() if most == 60_000} == {p for p in timed if "batch" in p}
    assert set(timed.values()) == {5_000, 60_000}
    assert {"/predict", "/v1/batch", "/v2/predict", "/v2/batch", "/v2/predict/iris", "/v2/batch/slow"} <= set(timed)
    assert all("predict" in path or "batch" in path for path in timed)


def test_every_answers_example_fits_its_schema(document: dict[str, Any]) -> None:
    """What the docs page shows is what would come."""
    checked = 0
    for operations in document["paths"].values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                for content in answer.get("content", {}).values():
                    if "example" in content:
                        schema = {"components": document["components"], **content["schema"]}
                        jsonschema.Draft202012Validator(schema).validate(content["example"])
                        checked += 1
    assert checked > 100


def test_every_example_in_the_document_is_answered(server: Server, document: dict[str, Any]) -> None:
    """What the docs page offers to try works as it stands."""
    tried = 0
    with server.client() as client:
        client.headers["authorization"] = _bearer()
        for path, operations in document["paths"].items():
            content = operations.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in content and "slow" not in path:
                answer = client.post(path, json=content["example"])
                assert answer.status_code == 200, (path, answer.text)
                tried += 1
    assert tried >= 12


def _resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        found: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return found
    return schema
