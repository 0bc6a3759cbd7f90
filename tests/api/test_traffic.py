"""Callers who name no version are shared out by their key, and the comparison counts what came of it."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge

from app.config import ModelSettings, Settings, StorageSettings
from app.inference.traffic import Split
from app.manifest import TrafficRules
from app.storage.migrations import upgrade
from tests.support.asgi import OPEN, UNLIMITED, Answer, InProcess, in_process
from tests.support.versions import NUMBER, X, one_golden, write_classifier, write_roles, write_version

JSON = ("content-type", "application/json")
BOTH = {"champion": 1, "challenger": 2}
HEADER = "header:X-User"


def _pair(root: Path, name: str, aliases: dict[str, int] = BOTH, **rules: Any) -> None:
    """Two versions that differ for x from 5 to 9."""
    write_classifier(root, name=name)
    write_classifier(root, name=name, version=2, big=5)
    write_roles(root, name, aliases, **rules)


def _strange(root: Path) -> None:
    """The champion takes null, and the challenger does not."""
    numbers = np.arange(20.0).reshape(-1, 1)
    for version, estimator, missing in ((1, Ridge(), "refuse"), (2, HistGradientBoostingRegressor(), "allow")):
        estimator.fit(numbers, numbers[:, 0])
        fields = (X.model_copy(update={"missing": missing}),)
        golden = one_golden(float(estimator.predict([[1.0]])[0]))
        more: dict[str, Any] = {"task": "regression", "outputs": NUMBER, "golden": golden, "fields": fields}
        write_version(root, estimator, name="strange", version=version, **more)
    write_roles(root, "strange", {"champion": 2, "challenger": 1}, challenger_weight=1.0)


@pytest.fixture(scope="module")
def split_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """Models that are split in several ways, with a database."""
    folder = tmp_path_factory.mktemp("split")
    root = folder / "models"
    _pair(root, "w50", challenger_weight=0.5, sticky_by=HEADER)
    _pair(root, "fielded", challenger_weight=0.5, sticky_by="field:x")
    _pair(root, "full", challenger_weight=1.0, sticky_by="field:x")
    _pair(root, "judged", challenger_weight=0.5, sticky_by=HEADER)
    _pair(root, "idle", challenger_weight=0.0)
    _strange(root)
    _pair(root, "shadowed", {"champion": 1, "shadow": 2})
    storage = StorageSettings(database_url=SecretStr(f"sqlite:///{folder}/presage.db"), journal_dir=folder / "journal")
    upgrade(storage)
    with in_process(_settings(root, storage)) as app:
        yield app


def _settings(root: Path, storage: StorageSettings) -> Settings:
    models = ModelSettings(models_dir=root, compile="off")
    return Settings(auth=OPEN, limits=UNLIMITED, models=models, storage=storage)


def _predict(app: InProcess, model: str, x: float | None = 7, user: str | None = None, **more: Any) -> Answer:
    headers = [JSON] if user is None else [JSON, ("x-user", user)]
    answer = app.request("POST", f"/v2/predict/{model}", json_body={"inputs": {"x": x}}, headers=headers, **more)
    assert answer.status == 200, answer.body
    return answer


def _expected(model: str, key: bytes, **rules: Any) -> int:
    return 2 if Split(model, 2, TrafficRules(**rules)).takes(key) else 1


@pytest.mark.parametrize("weight", [0.1, 0.5])
def test_the_share_of_requests_is_the_weight(tmp_path: Path, weight: float) -> None:
    """Of 20,000 from as many callers, within a percentage point; and each gets what its key says."""
    count = 20_000
    _pair(tmp_path, "toy", challenger_weight=weight, sticky_by=HEADER)

    async def ask(app: InProcess, n: int) -> int:
        headers = [JSON, ("x-user", f"user {n}")]
        answer = await app._request("POST", "/v2/predict/toy", [b'{"inputs":{"x":1}}'], headers, "", "gate")
        version: int = answer.json()["version"]
        return version

    async def ask_all(app: InProcess) -> list[int]:
        some = [range(start, start + 500) for start in range(0, count, 500)]
        return [version for ns in some for version in await asyncio.gather(*(ask(app, n) for n in ns))]

    with in_process(_settings(tmp_path, StorageSettings(log_policy="off"))) as app:
        versions = app.run(ask_all(app))
    assert abs(versions.count(2) / count - weight) < 0.01
    for n in range(0, count, 100):
        assert versions[n] == _expected("toy", b"user %d" % n, challenger_weight=weight)


@pytest.mark.parametrize("door", ["gate", "framework"])
def test_a_header_is_the_key(split_app: InProcess, door: Any) -> None:
    """The same caller gets the same version each time, by either door; one without it by who they are."""
    rules = {"challenger_weight": 0.5}
    for user in ("ada", "bob", "cyn", "dan", "eve", "fay", "gus", "hal"):
        expected = _expected("w50", user.encode(), **rules)
        for _ in range(2):
            document = _predict(split_app, "w50", user=user, door=door).json()
            assert document["version"] == expected
            assert document["prediction"] == ("big" if expected == 2 else "small")
    for nobody in (None, ""):
        version = _predict(split_app, "w50", user=nobody, door=door).json()["version"]
        assert version == _expected("w50", b"anonymous", **rules)


def test_a_field_is_the_key(split_app: InProcess) -> None:
    """Its value as JSON; a caller who names a version gets that one."""
    seen = set()
    for x in range(20):
        version = _predict(split_app, "fielded", x).json()["version"]
        assert version == _expected("fielded", b"%d.0" % x, challenger_weight=0.5)
        seen.add(version)
        for wanted, number in (("champion", 1), ("challenger", 2), ("1", 1)):
            assert _predict(split_app, "fielded", x, query=f"version={wanted}").json()["version"] == number
    assert seen == {1, 2}


def test_a_batch_is_answered_by_one_version(split_app: InProcess) -> None:
    """By the header; where a field is the key, by the champion."""
    inputs = [{"x": x} for x in range(20)]
    for user in ("ada", "bob", "cyn", "dan"):
        headers = [JSON, ("x-user", user)]
        for model, expected in (
            ("w50", _expected("w50", user.encode(), challenger_weight=0.5)),
            ("fielded", 1),
        ):
            answer = split_app.request("POST", f"/v2/batch/{model}", json_body={"inputs": inputs}, headers=headers)
            assert answer.json()["version"] == expected
            labels = [result["prediction"] for result in answer.json()["results"]]
            assert labels == ["big" if x >= (5 if expected == 2 else 10) else "small" for x in range(20)]
    assert _predict(split_app, "full", 7).json()["version"] == 2
    assert split_app.request("POST", "/v2/batch/full", json_body={"inputs": inputs}).json()["version"] == 1


def test_a_bad_row_is_refused_as_without_a_split(split_app: InProcess) -> None:
    """Whichever version would have answered it."""
    bodies = set()
    for user in ("ada", "bob", "cyn", "dan"):
        headers = [JSON, ("x-user", user), ("x-request-id", "same")]
        answer = split_app.request("POST", "/v2/predict/w50", json_body={"inputs": {"x": "1"}}, headers=headers)
        assert answer.status == 422
        bodies.add(answer.body)
    assert len(bodies) == 1


def test_a_challenger_that_would_refuse_rows_gets_none(split_app: InProcess) -> None:
    """The champion takes null and the challenger does not: all go to the champion, and the comparison says why."""
    for x in (1.0, None, 12.0):
        assert _predict(split_app, "strange", x).json()["version"] == 2
    challenger = _compare(split_app, "strange")["challenger"]
    assert challenger["stopped"] == "other_inputs"
    assert challenger["champion"]["rows"] == 3
    assert challenger["challenger"]["rows"] == 0


def test_the_arms_are_counted(split_app: InProcess) -> None:
    """Rows, labels and time of both, and how often each was right where the truth is known."""
    sent: dict[int, list[tuple[str, int]]] = {1: [], 2: []}
    truths = []
    for n in range(60):
        document = _predict(split_app, "judged", n % 20, user=str(n)).json()
        sent[document["version"]].append((document["prediction"], n % 20))
        truths.append({"prediction_id": document["id"], "truth": "big" if n % 20 >= 5 else "small"})
    told = split_app.request("POST", "/v2/feedback", json_body={"items": truths}).json()
    assert told["counts"] == {"succeeded": 60, "failed": 0}
    found = _compare(split_app, "judged")["challenger"]
    assert "stopped" not in found
    assert (found["weight"], found["sticky_by"]) == (0.5, HEADER)
    for arm, version in (("champion", 1), ("challenger", 2)):
        rows = sent[version]
        labels = Counter(label for label, _ in rows)
        assert found[arm]["version"] == version
        assert found[arm]["rows"] == len(rows)
        assert found[arm]["labels"] == pytest.approx({label: n / len(rows) for label, n in labels.items()})
        assert 0 < found[arm]["call_ms_p50"] <= found[arm]["call_ms_p99"]
        right = np.mean([(label == "big") == (x >= 5) for label, x in rows])
        assert found[arm]["accuracy"]["rows"] == len(rows)
        assert found[arm]["accuracy"]["correct"]["share"] == pytest.approx(right)
    assert found["challenger"]["accuracy"]["correct"]["share"] == 1.0


def test_a_shadow_is_compared_and_on_no_record(split_app: InProcess) -> None:
    """The flips of a count by hand; the log has the champion's rows alone."""
    for x in range(20):
        assert _predict(split_app, "shadowed", x).json()["version"] == 1
    found = _settled(split_app, "shadowed", 20)
    assert found["outcomes"] == {"agreed": 15, "flipped": 5}
    assert found["flips"] == {"small": {"big": 5}}
    deadline = time.monotonic() + 10
    while len(logged := _logged(split_app, "shadowed")) < 20:
        assert time.monotonic() < deadline
    assert [row["version"] for row in logged] == [1] * 20


def test_what_there_is_not_is_not_compared(split_app: InProcess) -> None:
    """A weight of nothing is said to be the reason; a model without roles has none; an unknown one is not found."""
    idle = _compare(split_app, "idle")
    assert idle["challenger"]["stopped"] == "weight_zero"
    assert "shadow" not in idle
    assert idle["rules"]["challenger_weight"] == 0.0
    assert "challenger" not in _compare(split_app, "shadowed")
    assert split_app.request("GET", "/v2/catalog/nothing/comparison").status == 404


def test_the_document_says_that_callers_are_split(split_app: InProcess) -> None:
    """What answers without a version has no single name any more."""
    paths = split_app.request("GET", "/openapi.json").json()["paths"]

    def version(model: str) -> Any:
        return next(p for p in paths[f"/v2/predict/{model}"]["post"]["parameters"] if p["name"] == "version")

    assert "default" not in version("w50")["schema"]
    assert "the challenger" in version("w50")["description"]
    assert version("shadowed")["schema"]["default"] == "champion"


def _compare(app: InProcess, model: str) -> Any:
    answer = app.request("GET", f"/v2/catalog/{model}/comparison")
    assert answer.status == 200, answer.body
    return answer.json()


def _settled(app: InProcess, model: str, rows: int) -> Any:
    """The shadow beside the champion, once so many rows are counted."""
    deadline = time.monotonic() + 20
    while True:
        found = _compare(app, model)["shadow"]["beside"][0]
        if sum(found["outcomes"].values()) >= rows:
            return found
        assert time.monotonic() < deadline, found


def _logged(app: InProcess, model: str) -> Any:
    return app.request("GET", "/v2/predictions", query=f"model={model}&size=100").json()["predictions"]
