"""Requests that come at the same time share calls of the model, and nothing else."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from sklearn.neighbors import KNeighborsRegressor

from app.config import CacheSettings, ModelSettings, Settings, StorageSettings
from app.storage.migrations import upgrade
from app.training.options import Options
from app.training.publish import publish
from tests.support.asgi import OPEN, UNLIMITED, Answer, InProcess, in_process

# The model raises for a call with 13 in it, and tries to end the process for one with 14.
_CHAMPIONS = (("first", "second"), ("champion", "champion"))
_ROWS = st.lists(st.sampled_from([0, 5, 9, 13, 14]), min_size=1, max_size=5)


def _essence(answer: Answer) -> tuple[int, Any]:
    """What was said, but for ids and times."""
    document = answer.json()
    for changing in ("id", "request_id", "timing"):
        document.pop(changing, None)
    for result in document.get("results", []):
        result.pop("id", None)
    return answer.status, document


def _path(rows: list[int]) -> str:
    return "/v2/predict/brittle" if len(rows) == 1 else "/v2/batch/brittle"


def _body(rows: list[int]) -> Any:
    inputs = [{"x": number} for number in rows]
    return {"inputs": inputs[0] if len(inputs) == 1 else inputs}


@settings(max_examples=8, deadline=None)
@given(requests=st.lists(_ROWS, min_size=2, max_size=12))
@example(requests=[[5], [13], [9], [14], [0], [13, 5], [5, 5, 5]])
def test_each_caller_gets_what_they_would_get_alone(app: InProcess, requests: list[list[int]]) -> None:
    """Single rows and batches at once, some of which make the model raise: status, values and errors are one's own."""

    async def at_once() -> list[Answer]:
        return await asyncio.gather(*[app.ask("POST", _path(rows), _body(rows)) for rows in requests])

    together = [_essence(answer) for answer in app.run(at_once())]
    alone = [_essence(app.request("POST", _path(rows), json_body=_body(rows))) for rows in requests]
    assert together == alone


def test_thirty_one_good_rows_and_a_bad_one_are_thirty_one_answers(app: InProcess) -> None:
    """They come in one call of the model, and only the bad one is refused."""
    before = _calls(app)

    async def at_once() -> list[Answer]:
        asked = [app.ask("POST", "/v2/predict/brittle", {"inputs": {"x": 13 if i == 20 else 5}}) for i in range(32)]
        return await asyncio.gather(*asked)

    statuses = [answer.status for answer in app.run(at_once())]
    assert statuses == [500 if i == 20 else 200 for i in range(32)]
    assert _calls(app) - before <= 3


@pytest.mark.parametrize("cache", ["off", "memory"])
def test_two_models_that_take_the_same_row_answer_each_for_itself(
    tmp_path: Path, cache: Literal["off", "memory"]
) -> None:
    """At the same time and one after the other, with a cache or without; and so do two versions of one."""
    numbers = np.arange(20.0).reshape(-1, 1)
    factors = {("first", 1): 2.0, ("first", 2): 3.0, ("second", 1): 5.0}
    options = Options(models_dir=tmp_path / "models", field_names=("x",))
    for (name, version), factor in factors.items():
        aliases = replace(options, aliases=(f"number-{version}",))
        estimator = KNeighborsRegressor(1).fit(numbers, numbers[:, 0] * factor)
        publish(name, estimator, numbers, numbers[:, 0] * factor, task="regression", options=aliases)
    url = SecretStr(f"sqlite:///{tmp_path}/presage.db")
    storage = StorageSettings(database_url=url, journal_dir=tmp_path / "journal", log_policy="off")
    upgrade(storage)
    models = ModelSettings(models_dir=tmp_path / "models", default_model="first", compile="off")
    chosen = Settings(auth=OPEN, limits=UNLIMITED, models=models, storage=storage, cache=CacheSettings(cache=cache))
    with in_process(chosen) as app:
        for _ in range(3):
            for (name, version), factor in factors.items():
                path, query = f"/v2/predict/{name}", f"version={version}"
                answer = app.request("POST", path, json_body={"inputs": {"x": 7}}, query=query)
                assert answer.json()["prediction"] == pytest.approx(7 * factor)
        asked = ["first", "second"] * 20
        answers = app.run(_gather(app, [(f"/v2/predict/{name}", {"inputs": {"x": 8}}) for name in asked]))
        assert [answer.json()["prediction"] for answer in answers] == [
            {"first": 16.0, "second": 40.0}[n] for n in asked
        ]


def test_requests_leave_no_timers_behind(app: InProcess) -> None:
    """A deadline for each would otherwise be kept for as long as it is away, and what it refers to with it."""

    async def timers() -> int:
        await asyncio.sleep(0.1)
        loop: Any = asyncio.get_running_loop()
        return sum(not timer.cancelled() for timer in loop._scheduled)

    before = app.run(timers())
    rows = [("/v2/predict/iris", {"inputs": {}}), ("/predict", {"text": "fine"}), ("/v2/predict/brittle", _body([5]))]
    for _ in range(5):
        app.run(_gather(app, rows * 20))
    assert app.run(timers()) <= before + 2


async def _gather(app: InProcess, requests: Sequence[tuple[str, Any]]) -> list[Answer]:
    return await asyncio.gather(*[app.ask("POST", path, document) for path, document in requests])


def _calls(app: InProcess) -> float:
    labels = {"model": "brittle", "version": "1"}
    return app.app.services.metrics.registry.get_sample_value("presage_call_rows_count", labels) or 0.0
