"""HotRoute: a FastAPI route that answers by itself, without FastAPI's machinery around it.

To FastAPI it is an ordinary route: declared with a decorator, typed, in the OpenAPI document, reachable by the test
client. But its `handle` goes straight from bytes to the endpoint and back, and the gate calls it without passing the
router and the middlewares. One implementation, two doors; both give the same answers and the same errors.
"""

import asyncio
import time
from collections.abc import Sequence
from functools import cached_property
from urllib.parse import parse_qsl

import structlog
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from app.api.access import declared
from app.api.exchange import (
    REQUEST_ID,
    Disconnected,
    caller_gone,
    has_much_to_come,
    header,
    read_json_body,
    request_id,
    security_headers,
    send_answer,
    send_early_answer,
)
from app.api.guard import Admission, Guard
from app.api.problems import from_exception, render
from app.errors import (
    BatchExceedsPlan,
    BodyTooLarge,
    DeadlineExceeded,
    FieldError,
    InvalidInput,
    NotReady,
    Overloaded,
    PresageError,
    RateLimited,
    Unavailable,
)
from app.inference.turns import CallerGone, Terms
from app.storage.records import Origin
from app.wiring import Services

log = structlog.get_logger(__name__)

_JSON_HEADER = (b"content-type", b"application/json")
_TIMEOUT_NAME = "X-Request-Timeout-Ms"
TIMEOUT = _TIMEOUT_NAME.lower().encode()
_LONGEST_NUMBER = 9
_LOUD = 500
_GONE = 499
# Whoever floods the service does not fill its log, too: what is refused for these is counted in the metrics.
QUIET = {401, 429}


class Call(Request):
    """One request to a hot route. FastAPI takes it for a Request, and so leaves the endpoint's signature alone."""

    content: bytes

    def __init__(self, scope: Scope, services: Services, admission: Admission, terms: Terms) -> None:
        """Who was let in, and on what terms. The base class is not asked: it would prepare what is not used here."""
        self.scope = scope
        self.services = services
        self.admission = admission
        self.terms = terms

    def charge(self, rows: int) -> None:
        """The price of a batch, before any work is done for it. Raises RateLimited and BatchExceedsPlan."""
        self.services.limits.settle(self.admission.grant, rows)

    def parameter(self, name: str) -> str | None:
        """The one query parameter that the route takes; raises InvalidInput for any other, and for a second value."""
        query = self.scope["query_string"]
        if not query:
            return None
        try:
            pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=10)
        except ValueError:
            pairs = [("", "")]
        if len(pairs) != 1 or pairs[0][0] != name:
            problem = FieldError("invalid", f"the only query parameter here is {name}, at most once", field=name)
            raise InvalidInput.because([problem])
        value: str = pairs[0][1]
        return value

    def no_parameters(self) -> None:
        """Raises InvalidInput when there is a query: a parameter that is ignored would mislead."""
        if self.scope["query_string"]:
            raise InvalidInput("this route takes no query parameters")


class Reply:
    """The body of a 200, and headers beyond the usual ones."""

    __slots__ = ("body", "headers")

    def __init__(self, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.body = body
        self.headers = headers


class HotRoute(APIRoute):
    """Endpoints have the form `async def endpoint(call: Call) -> Reply`, and raise PresageErrors."""

    max_bytes_setting = "max_body_bytes"
    timeout_setting = "request_timeout_ms"
    bulk = False

    @cached_property
    def _needed(self) -> tuple[str, ...]:
        return declared(self)

    @cached_property
    def _protocol(self) -> str:
        """As the log names it: `/predict` is version 1's, too."""
        return "v2" if self.path.startswith("/v2/") else "v1"

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens; only a cancellation gets through."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        started = time.perf_counter()
        services: Services = scope["app"].services
        call: Call | None = None
        error: Exception
        try:
            call = self._admitted(scope, services, started)
            most: int = getattr(services.settings.bounds, self.max_bytes_setting)
            call.content = await read_json_body(scope, receive, most)
            reply: Reply = await self.endpoint(call)
        except (Disconnected, CallerGone):
            services.metrics.record_hot(self.path, _GONE, time.perf_counter() - started)
            return
        except asyncio.CancelledError:
            # The server's grace is over. It would answer a bare 500 where we are gone; nothing else waits for us here.
            error = NotReady("the service is stopping", retry_after=1)
        except Exception as failure:  # noqa: BLE001 -- every failure becomes a problem document
            error = failure
        else:
            headers = [_JSON_HEADER, *reply.headers, *self._common_headers(scope, call)]
            await send_answer(send, 200, headers, reply.body, scope)
            services.metrics.record_hot(self.path, 200, time.perf_counter() - started)
            return
        status = await self._fail(scope, receive, send, call, error)
        services.metrics.record_hot(self.path, status, time.perf_counter() - started)

    def _admitted(self, scope: Scope, services: Services, started: float) -> Call:
        guard: Guard = scope["app"].guard
        admission = guard.admit_to_model(scope, self._needed)
        milliseconds: int = getattr(services.settings.inference, self.timeout_setting)
        asked = header(scope, TIMEOUT)
        if asked is not None:
            milliseconds = min(milliseconds, _milliseconds(asked))
        origin = Origin(request_id(scope), admission.principal.subject, self._protocol)
        terms = Terms(origin, admission.who, started, started + milliseconds / 1000, self.bulk, caller_gone(scope))
        return Call(scope, services, admission, terms)

    def _common_headers(self, scope: Scope, call: Call) -> list[tuple[bytes, bytes]]:
        identity = (REQUEST_ID, request_id(scope).encode())
        return [*security_headers(scope), identity, *call.services.limits.headers(call.admission.grant)]

    async def _fail(self, scope: Scope, receive: Receive, send: Send, call: Call | None, error: Exception) -> int:
        """Answer with the problem document; returns its status."""
        if call is not None and isinstance(error, Unavailable):
            call.services.limits.give_back(call.admission.grant)  # nobody pays for what we could not do
        status, headers, body = self._refuse(error, scope)
        if call is None or isinstance(error, RateLimited | BatchExceedsPlan):
            # Nobody was let in, or the error has said what is left.
            headers += [*security_headers(scope), (REQUEST_ID, request_id(scope).encode())]
        else:
            headers += self._common_headers(scope, call)
        if isinstance(error, BodyTooLarge) or (call is None and has_much_to_come(scope)):
            await send_early_answer(receive, send, status, headers, body)
        else:
            await send_answer(send, status, headers, body, scope)
        return status

    def _refuse(self, error: Exception, scope: Scope) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """The problem document, and the one log line that a failure gets."""
        problem = from_exception(error)
        event = {"method": scope["method"], "handler": self.path, "status": problem.status, "code": problem.code}
        if isinstance(error, PresageError) and problem.status != _LOUD:
            quiet = problem.status in QUIET or isinstance(error, Overloaded | DeadlineExceeded)
            say = log.debug if quiet else log.info if problem.status < _LOUD else log.warning
            say("request_refused", request_id=request_id(scope), **event)
        else:
            unexpected = None if isinstance(error, PresageError) else error
            log.error("request_failed", request_id=request_id(scope), exc_info=unexpected, **event)
        return render(problem, request_id(scope))


class HotBatchRoute(HotRoute):
    """A hot route whose body may be as large as a batch."""

    max_bytes_setting = "max_batch_bytes"
    timeout_setting = "batch_timeout_ms"
    bulk = True


def _milliseconds(value: bytes) -> int:
    if not value.isdigit() or len(value) > _LONGEST_NUMBER or not int(value):
        problem = FieldError("invalid", f"{_TIMEOUT_NAME} is a whole number of milliseconds, 1 or more")
        raise InvalidInput.because([problem])
    return int(value)
