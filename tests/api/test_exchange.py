"""A body has a bound even where a framework reads it."""

import asyncio
from typing import Annotated, Any

import pytest
from fastapi import Body, FastAPI

from app.api.exchange import CountedBody
from app.api.problems import install_handlers
from app.errors import BodyTooLarge


def test_a_framework_that_covers_up_the_reason_answers_with_it_all_the_same() -> None:
    """FastAPI makes a vague 400 of whatever is raised while it reads a body."""
    app = FastAPI()

    @app.post("/")
    async def take(body: Annotated[dict[str, Any], Body()]) -> None:
        """Never gets there."""

    install_handlers(app)
    assert _status(app, [b'{"a": ', b'"' + b"b" * 20]) == 413
    assert _status(app, [b'{"a": ', b"1}"]) == 200


def test_nothing_comes_after_the_first_byte_too_many() -> None:
    """However often it is asked for."""

    async def read() -> None:
        body = CountedBody(_receive([b"12345", b"6", b"7"]), 5)
        assert (await body())["body"] == b"12345"
        assert not body.exceeded
        for _ in range(3):
            with pytest.raises(BodyTooLarge):
                await body()
        assert body.exceeded

    asyncio.run(read())


def _receive(chunks: list[bytes]) -> Any:
    left = list(chunks)

    async def receive() -> dict[str, Any]:
        chunk = left.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(left)}

    return receive


def _status(app: FastAPI, chunks: list[bytes]) -> int:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": b"", "root_path": ""}
    asyncio.run(app(scope, CountedBody(_receive(chunks), 10), send))
    status: int = sent[0]["status"]
    return status
