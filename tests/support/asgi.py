"""The application in this process, reached through either of its doors."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import FastAPI

from app.config import AuthSettings, LimitSettings, Settings
from app.factory import Service, create_app
from app.wiring import Inheritance

# What tests that are about something else have: everybody may, and as much as they like.
OPEN = AuthSettings(auth_mode="none")
UNLIMITED = LimitSettings(rate_limit="1000000000/minute", address_rate_limit="1000000000/minute")

Door = Literal["gate", "framework"]


@dataclass
class Answer:
    """One answer, header names in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """The first header of that name."""
        return next((value for key, value in self.headers if key == name), None)


class InProcess:
    """An application whose lifespan has begun."""

    def __init__(self, app: Service, runner: asyncio.Runner) -> None:
        self.app = app
        self._runner = runner

    def run(self, coroutine: Any) -> Any:
        """Run something on the application's loop."""
        return self._runner.run(coroutine)

    def request(
        self,
        method: str,
        path: str,
        *,
        json_body: Any = None,
        body: bytes | Sequence[bytes] | None = None,
        headers: Sequence[tuple[str, str]] | None = None,
        query: str = "",
        door: Door = "gate",
    ) -> Answer:
        """One request; a sequence of bytes comes in as many messages."""
        content = json.dumps(json_body).encode() if body is None and json_body is not None else body or b""
        if headers is None:
            headers = [("content-type", "application/json")] if content or body is not None else []
        chunks = [content] if isinstance(content, bytes) else list(content)
        answer: Answer = self.run(self._request(method, path, chunks, headers, query, door))
        return answer

    async def ask(self, method: str, path: str, document: Any) -> Answer:
        """One request of JSON, from code that runs on the application's loop."""
        headers = [("content-type", "application/json")]
        return await self._request(method, path, [json.dumps(document).encode()], headers, "", "gate")

    async def _request(
        self, method: str, path: str, chunks: list[bytes], headers: Sequence[tuple[str, str]], query: str, door: Door
    ) -> Answer:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        incoming = iter(chunks)
        left = len(chunks)
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            nonlocal left
            left -= 1
            if left < 0:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": next(incoming), "more_body": left > 0}

        async def send(message: Any) -> None:
            sent.append(message)

        if door == "gate":
            await self.app(scope, receive, send)
        else:
            await FastAPI.__call__(self.app, scope, receive, send)
        head = [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]
        return Answer(sent[0]["status"], head, b"".join(message.get("body", b"") for message in sent[1:]))


@contextmanager
def in_process(settings: Settings, inheritance: Inheritance | None = None) -> Iterator[InProcess]:
    """An application with its models loaded."""
    with asyncio.Runner() as runner:
        app = create_app(settings, inheritance)
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        try:
            runner.run(app.services.registry.loaded())
            yield InProcess(app, runner)
        finally:
            runner.run(lifespan.__aexit__(None, None, None))
