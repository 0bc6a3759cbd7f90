"""JsonRoute: a cold route that takes a JSON body, under the same rules as the hot ones.

FastAPI reads a body with the standard library, which takes NaN and lone surrogates for JSON, and turns whatever fails
meanwhile into one vague 400. So the body is read here, before FastAPI looks at it; the gate counts its bytes.
"""

from collections.abc import Callable, Coroutine
from typing import Any

import pydantic_core
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from app.api.exchange import check_json_head
from app.errors import MalformedJson

_GONE = 499


class JsonRequest(Request):
    """A request whose JSON is read strictly, once."""

    async def json(self) -> Any:
        """The body's value. Raises MalformedJson."""
        if not hasattr(self, "_json"):
            try:
                self._json = pydantic_core.from_json(await self.body(), allow_inf_nan=False)
            except ValueError as error:
                raise MalformedJson(str(error)) from None
        return self._json


class JsonRoute(APIRoute):
    """Refuses what is not plain JSON with 415 or 400; the endpoint may ask its JsonRequest for the value again."""

    max_bytes_setting = "max_body_bytes"

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler, behind the reading of the body."""
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            check_json_head(request.scope)
            request = JsonRequest(request.scope, request.receive)
            try:
                await request.json()
            except ClientDisconnect:
                return Response(status_code=_GONE)
            return await handle(request)

        return read_and_handle


class BulkJsonRoute(JsonRoute):
    """One that takes many items."""

    max_bytes_setting = "max_batch_bytes"
