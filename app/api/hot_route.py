"""HotRoute: a FastAPI route that answers by itself, without FastAPI's machinery around it.

To FastAPI it is an ordinary route: declared with a decorator, typed, in the OpenAPI document, reachable by the test
client. But it goes straight from bytes to the endpoint and back, and the gate calls it without passing the router and
the middlewares. An endpoint makes a `Question` of a request, and says what is told of the answer; waiting is not its
affair. So a request may have a task that waits (`handle`), or on our own wire none at all (`straight.py`). Whatever the
door, the answers and the errors are the same.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING
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
    fixed_on_json,
    fixed_security,
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
    VersionBeingLoaded,
)
from app.inference.service import Answer
from app.inference.turns import CallerGone, Terms
from app.pipelines.base import Row
from app.storage.records import Origin
from app.wiring import Services

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

log = structlog.get_logger(__name__)

_TIMEOUT_NAME = "X-Request-Timeout-Ms"
TIMEOUT = _TIMEOUT_NAME.lower().encode()
_LONGEST_NUMBER = 9
_LOUD = 500
GONE = 499
# More rows than these are put into words on a thread.
_TOLD_AT_ONCE = 64
# Whoever floods the service does not fill its log, too: what is refused for these is counted in the metrics.
QUIET = {401, 429}


class Call(Request):
    """One request to a hot route. FastAPI takes it for a Request, and so leaves the endpoint's signature alone."""

    content: bytes
    asked: float  # when the model was asked, by `time.perf_counter`

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


class Question:
    """Rows that a version is asked about, bad ones as what is wrong with them; and what the caller is told."""

    __slots__ = ("model", "rows", "tell")

    def __init__(
        self, model: "LoadedModel", rows: Sequence[Row | FieldError], tell: Callable[[Call, Answer], Reply]
    ) -> None:
        self.model = model
        self.rows = rows
        self.tell = tell


class HotRoute(APIRoute):
    """Endpoints have the form `def endpoint(call: Call) -> Question`, and raise PresageErrors."""

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
            call = self.admit(scope, services, started, caller_gone(scope))
            call.content = await read_json_body(scope, receive, self.most_bytes(services))
            question = await self._asked(call)
            answer = await services.predictions.predict(question.model, question.rows, call.terms)
            reply = await self._told(question, call, answer)
        except (Disconnected, CallerGone):
            self.record(services, GONE, started)
            return
        except asyncio.CancelledError:
            # The server's grace is over. It would answer a bare 500 where we are gone; nothing else waits for us here.
            error = stopping()
        except Exception as failure:  # noqa: BLE001 -- every failure becomes a problem document
            error = failure
        else:
            await send_answer(send, 200, self.headers(call, reply), reply.body, fixed_on_json(scope), scope)
            self.record(services, 200, started)
            return
        status, headers, body = self.refuse(scope, services, call, error)
        if isinstance(error, BodyTooLarge) or (call is None and has_much_to_come(scope)):
            await send_early_answer(receive, send, status, [*headers, *security_headers(scope)], body)
        else:
            await send_answer(send, status, headers, body, fixed_security(scope), scope)
        del error  # its traceback knows this frame; together they would keep the body until a rare collection
        self.record(services, status, started)

    def admit(self, scope: Scope, services: Services, started: float, gone: Callable[[], bool]) -> Call:
        """Whoever may, on the terms that they ask for. Raises what the guard does, and InvalidInput."""
        guard: Guard = scope["app"].guard
        admission = guard.admit_to_model(scope, self._needed)
        milliseconds: int = getattr(services.settings.inference, self.timeout_setting)
        asked = header(scope, TIMEOUT)
        if asked is not None:
            milliseconds = min(milliseconds, _milliseconds(asked))
        origin = Origin(request_id(scope), admission.principal.subject, self._protocol)
        terms = Terms(origin, admission.who, started, started + milliseconds / 1000, self.bulk, gone)
        return Call(scope, services, admission, terms)

    def most_bytes(self, services: Services) -> int:
        """Of a body."""
        most: int = getattr(services.settings.bounds, self.max_bytes_setting)
        return most

    def ask(self, call: Call) -> Question:
        """What the request asks. Raises PresageErrors."""
        question: Question = self.endpoint(call)
        call.asked = time.perf_counter()
        return question

    async def _asked(self, call: Call) -> Question:
        """What the request asks; where its version is only now being loaded, after that."""
        while True:
            try:
                return self.ask(call)
            except VersionBeingLoaded as error:
                coming = call.services.registry.coming(error.model, error.version)
                if not (await asyncio.wait([coming], timeout=call.terms.deadline - time.perf_counter()))[0]:
                    raise

    async def _told(self, question: Question, call: Call, answer: Answer) -> Reply:
        if len(answer.outcomes) <= _TOLD_AT_ONCE:
            return question.tell(call, answer)
        # A large answer takes longer to be put into words than others should wait.
        return await asyncio.to_thread(question.tell, call, answer)

    def headers(self, call: Call, reply: Reply) -> list[tuple[bytes, bytes]]:
        """Of a 200: those that differ from request to request."""
        return [*reply.headers, *self._own_headers(call)]

    def _own_headers(self, call: Call) -> list[tuple[bytes, bytes]]:
        identity = (REQUEST_ID, call.terms.origin.request_id.encode())
        return [identity, *call.services.limits.headers(call.admission.grant)]

    def refuse(
        self, scope: Scope, services: Services, call: Call | None, error: Exception
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """The problem document, and the one log line that a failure gets."""
        if call is not None and isinstance(error, Unavailable) and not _worked(error):
            services.limits.give_back(call.admission.grant)  # nobody pays for what we could not do
        problem = from_exception(error)
        event = {"method": scope["method"], "handler": self.path, "status": problem.status, "code": problem.code}
        if isinstance(error, PresageError) and problem.status != _LOUD:
            quiet = problem.status in QUIET or isinstance(error, Overloaded | DeadlineExceeded)
            say = log.debug if quiet else log.info if problem.status < _LOUD else log.warning
            say("request_refused", request_id=request_id(scope), **event)
        else:
            unexpected = None if isinstance(error, PresageError) else error
            log.error("request_failed", request_id=request_id(scope), exc_info=unexpected, **event)
        status, headers, body = render(problem, request_id(scope))
        if call is None or isinstance(error, RateLimited | BatchExceedsPlan):
            # Nobody was let in, or the error has said what is left.
            return status, [*headers, (REQUEST_ID, request_id(scope).encode())], body
        return status, [*headers, *self._own_headers(call)], body

    def record(self, services: Services, status: int, started: float) -> None:
        """Count the request."""
        services.metrics.record_hot(self.path, status, time.perf_counter() - started)


def stopping() -> NotReady:
    """What is still waited for when the server's grace is over."""
    return NotReady("the service is stopping", retry_after=1)


class HotBatchRoute(HotRoute):
    """A hot route whose body may be as large as a batch."""

    max_bytes_setting = "max_batch_bytes"
    timeout_setting = "batch_timeout_ms"
    bulk = True


def _worked(error: Exception) -> bool:
    """Whether it was done, only not in time: else short deadlines would have models work for nothing."""
    return isinstance(error, DeadlineExceeded) and error.worked


def _milliseconds(value: bytes) -> int:
    if not value.isdigit() or len(value) > _LONGEST_NUMBER or not int(value):
        problem = FieldError("invalid", f"{_TIMEOUT_NAME} is a whole number of milliseconds, 1 or more")
        raise InvalidInput.because([problem])
    return int(value)
