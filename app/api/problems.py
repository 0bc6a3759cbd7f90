"""Errors as RFC 9457 problem documents: the one place that makes them, whoever found the error.

Four makers of errors end here: our own code (PresageError), Starlette's routing (HTTPException), FastAPI's validation
(RequestValidationError), and whatever nobody expected.
"""

import json
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.api.exchange import Headers, request_id
from app.errors import (
    AmbiguousCredentials,
    FieldError,
    Forbidden,
    InternalError,
    InvalidInput,
    MalformedJson,
    MethodNotAllowed,
    NotFound,
    PresageError,
    RateLimited,
    RequestRefused,
    Unauthenticated,
)
from app.pipelines.base import to_json
from app.pipelines.rows import MOST_ERRORS, describe_error

MEDIA_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    """One thing that is wrong with one place of the request."""

    code: str = Field(examples=["wrong_type"])
    detail: str = Field(examples=["must be a number"])
    field: str | None = Field(None, examples=["sepal length (cm)"])
    row: int | None = Field(None, description="Position in the batch, from 0.")


class Problem(BaseModel):
    """An RFC 9457 problem document. `code` is stable; `detail` is for people."""

    type: str = Field(examples=["urn:presage:problem:invalid_input"])
    title: str
    status: int
    detail: str
    code: str = Field(examples=["invalid_input"])
    request_id: str
    errors: list[FieldProblem] = Field([], description="At most 20 of the things that are wrong.")


def render(error: PresageError, request: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the answer to the request of that id."""
    document: dict[str, Any] = {
        "type": f"urn:presage:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request,
        **error.members,
    }
    if error.errors:
        document["errors"] = [field_problem(found) for found in error.errors[:MOST_ERRORS]]
    headers = [(b"content-type", MEDIA_TYPE.encode()), *error.headers]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    return error.status, headers, to_json(document)


def field_problem(found: FieldError) -> dict[str, Any]:
    """The members that have a value."""
    return {key: value for key, value in asdict(found).items() if value is not None}


def problems(*kinds: type[PresageError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may raise these, for the OpenAPI document; the first speaks for its status."""
    first = {kind.status: kind for kind in reversed(kinds)}
    return {
        status: {"description": kind.title, "content": {MEDIA_TYPE: _content(kind)}} for status, kind in first.items()
    }


def _content(kind: type[PresageError]) -> dict[str, Any]:
    errors = [FieldError("required", "is required", field="text")] if kind is InvalidInput else []
    example = kind((kind.__doc__ or "").strip(), errors=errors)
    return {"schema": PROBLEM_REFERENCE, "example": json.loads(render(example, "f872c3a6c8ab467cb2647c42512e1c9a")[2])}


# What the guard may answer on any route that is not open.
REFUSALS: tuple[type[PresageError], ...] = (AmbiguousCredentials, Unauthenticated, Forbidden, RateLimited)

PROBLEM_REFERENCE = {"$ref": "#/components/schemas/Problem"}


def install_handlers(app: FastAPI) -> None:
    """Make every error that FastAPI's own stack meets a problem document."""

    async def answer(request: Request, error: Exception) -> Response:
        status, headers, body = render(from_exception(error), request_id(request.scope))
        response = Response(body, status)
        response.raw_headers += headers
        return response

    for kind in (PresageError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer)


def from_exception(error: Exception) -> PresageError:
    """Any exception as an error that a caller may see."""
    match error:
        case PresageError():
            return error
        case RequestValidationError():
            return _validation_refusal(error)
        case HTTPException():
            return _from_framework(error)
    return InternalError("something failed here; the log has more under this request's id")


def _from_framework(error: HTTPException) -> PresageError:
    match error:
        case HTTPException(__cause__=PresageError() as cause):  # covered up: it was met while reading a body
            return cause
        case HTTPException(status_code=404):
            return NotFound("there is nothing at this path")
        case HTTPException(status_code=405):
            return MethodNotAllowed("this path does not take that method", headers=_raw(error))
    return _plain(error)


def _validation_refusal(error: RequestValidationError) -> PresageError:
    """What is wrong with the body or the parameters of a cold route: their names are ours, the values stay out."""
    found = error.errors()
    if any(e["type"] == "json_invalid" for e in found):
        return MalformedJson("the body is not valid JSON")
    unknown = [FieldError("unknown_field", "a name is not known here") for e in found if e["type"] == "extra_forbidden"]
    known = [_validation_error(e) for e in found if e["type"] != "extra_forbidden"]
    return InvalidInput.because([*known, *unknown[:1]][:MOST_ERRORS])


def _validation_error(found: dict[str, Any]) -> FieldError:
    # pydantic's own sentences fit parameters, but for those on ids and times, which repeat letters of what was sent.
    ours = found["type"].startswith(("uuid", "datetime"))
    code, detail = describe_error(found) if ours else ("invalid", found["msg"])
    place = found["loc"][1:]  # after "query", "path" or "body"
    return FieldError(code, detail, field=str(place[-1]) if place else None)


def _plain(error: HTTPException) -> PresageError:
    """A status that no class of ours has, such as one from a library's own route."""
    phrase = HTTPStatus(error.status_code).phrase
    answer = RequestRefused(phrase, headers=_raw(error))
    answer.status, answer.title = error.status_code, phrase  # type: ignore[misc]
    return answer


def _raw(error: HTTPException) -> Headers:
    return [(key.lower().encode(), value.encode()) for key, value in (error.headers or {}).items()]
