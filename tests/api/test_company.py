"""Requests that come at the same time share calls of the model, and nothing else."""

import asyncio
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.asgi import Answer, InProcess

# The model raises for a call with 13 in it, and tries to end the process for one with 14.
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


def _calls(app: InProcess) -> float:
    labels = {"model": "brittle", "version": "1"}
    return app.app.services.metrics.registry.get_sample_value("presage_call_rows_count", labels) or 0.0
