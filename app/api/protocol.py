"""Protocol: the wire in front of the application.

uvicorn's own protocol, with bounds on what a caller may send and on how long that may take, no request that can be read
in two ways, and an answer that explains itself to everyone who is refused.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, cast
from urllib.parse import unquote

import httptools
import structlog
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.api.connections import Wire
from app.api.cycle import Cycle
from app.api.exchange import REQUEST_ID, SECURITY_HEADERS, SHORT_WAY, send_early_answer
from app.api.framing import FRAMING, check_framing, check_target, refuse_tunnel
from app.api.heads import Begin, Head
from app.api.hot_route import QUIET
from app.api.problems import render
from app.config import Settings
from app.errors import (
    HeadersTooLarge,
    MalformedRequest,
    PresageError,
    RequestTimeout,
    TooManyConnections,
    UrlTooLong,
)
from app.inference.identifiers import random_hex
from app.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_MOST_PIPELINED = 64
# A colon, a blank and the end of the line.
_BESIDE_A_HEADER = 4

# What a connection is in the middle of. Numbers, since an Enum's members cost as much to look up as a parser's call.
_IDLE = 0  # no byte of another request has come
_HEAD = 1
_BODY = 2
_REFUSED = 3  # what still comes is thrown away
_KEPT = 4  # waited for as long as connections are kept; otherwise as idle


class GuardedProtocol(HttpToolsProtocol):
    """One connection; `guarded` binds the class to the settings."""

    # Beside uvicorn's own, further names in the instance's dictionary would make every look-up in it slower.
    __slots__ = (
        "_fixed_scope",
        "_framing",
        "_network",
        "_phase",
        "_requests",
        "_seconds",
        "_since",
        "_sound",
        "_unused",
        "_waits",
    )

    wire: Wire

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As uvicorn makes it; the time for another request to come is uvicorn's setting."""
        super().__init__(*args, **kwargs)
        wire = self.wire
        head, body = wire.header_seconds, wire.body_seconds
        self._seconds = {_IDLE: head, _HEAD: head, _BODY: body, _KEPT: self.timeout_keep_alive}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a connection that is one too many; one far too many gets no answer."""
        super().connection_made(transport)
        self.url = b""
        self._fixed_scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
        }
        self._phase = _IDLE
        self._unused = 0  # bytes of which nothing has been made yet
        self._requests = 0  # that the parser has found
        self._framing: list[tuple[bytes, bytes]] = []
        self._sound: tuple[str, list[tuple[bytes, bytes]]] | None = None  # what was the same before, and passed
        addresses = self.wire.addresses
        self._network, connections = addresses.enter(self.client[0] if self.client else "")
        self._wait(_IDLE)
        if connections > 2 * addresses.most:
            transport.abort()
        elif connections > addresses.most:
            detail = f"one address may have {addresses.most} connections"
            self._refuse(TooManyConnections(detail, retry_after=1))

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self.wire.addresses.leave(self._network)
        self.wire.deadlines.clear(self)
        super().connection_lost(exc)
        # What nobody waits for any more knows this connection, and together they would stay until a rare collection.
        for waiting, _ in self.pipeline:
            waiting.on_response = _nothing
            cast("Cycle", waiting).forget()
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless it is a request whose head has come before."""
        if self._phase != _IDLE or self._unused or self._answering():
            self._feed(data)
            return
        known = self.wire.heads.find(data)
        if known is not None:
            self._again(*known)
            return
        requests = self._requests
        self._feed(data)
        if self._phase == _IDLE and self._requests == requests + 1:
            self.wire.heads.remember(data, cast("Any", self.scope))

    def _feed(self, data: bytes) -> None:
        """Whatever is wrong with what came ends the connection, with an answer."""
        before = self._phase
        if before == _REFUSED:
            self.on_body(data)
            return
        try:
            self._unused += len(data)
            self.parser.feed_data(data)
            if self._unused > self.wire.most_header_bytes:
                self._check_progress()
        except httptools.HttpParserUpgrade as stop:
            self._without_upgrade(data[stop.args[0] :])
        except (PresageError, httptools.HttpParserError) as error:
            self._refuse(_reason(error))
        else:
            waits: int | None = self._phase
            if waits == _IDLE:
                waits = None if self._answering() else self._begun(before, data)
            if waits != self._waits:
                self._wait(waits)

    def on_response_complete(self) -> None:
        """The next request on this connection, or the wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._phase == _IDLE:
            self._wait(_KEPT)

    @property
    def silent(self) -> bool:
        """Whether no request has come yet."""
        return cast("Cycle | None", self.cycle) is None and self._phase in (_IDLE, _HEAD)

    def shutdown(self) -> None:
        """The server stops: end when the request that is in work is answered, and at once where none is."""
        if self._phase == _HEAD:
            self._refuse(RequestTimeout("the service is stopping, and the head of the request has not come"))
        else:
            super().shutdown()

    def overdue(self) -> None:
        """What was waited for has not come in time."""
        if self._phase == _IDLE and self._answering():
            self._wait(None)
        elif self._phase == _IDLE:
            self.transport.close()
        else:
            what, seconds = "body", self.wire.body_seconds
            if self._phase == _HEAD:
                what, seconds = "head", self.wire.header_seconds
            self._refuse(RequestTimeout(f"the {what} of a request may take {seconds:g} seconds to come"))

    # What the parser finds.
    def on_url(self, url: bytes) -> None:
        """A piece of the target. Raises UrlTooLong."""
        self._phase = _HEAD
        self.url += url
        if len(self.url) > self.wire.most_url_bytes:
            raise UrlTooLong(f"path and query may have {self.wire.most_url_bytes} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. A trailer is thrown away: the request has been passed on by then."""
        if self._phase == _BODY:
            return
        name = name.lower()
        if name in FRAMING:
            value = value.rstrip(b" \t")
            self._framing.append((name, value))
        elif name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Pass the request on. Raises HeadersTooLarge and MalformedRequest."""
        wire = self.wire
        if len(self.headers) > wire.most_headers or (self._unused > wire.most_header_bytes and not self._fits()):
            raise self._headers_too_large()
        parser = self.parser
        url, framing = self.url, (parser.get_http_version(), self._framing)
        self._framing = []
        if framing != self._sound:
            check_framing(*framing)
            self._sound = framing
        if url[:1] != b"/" or b"#" in url:
            check_target(parser.get_method(), url)
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise MalformedRequest(f"at most {_MOST_PIPELINED} requests may wait on one connection")
        if parser.should_upgrade():
            refuse_tunnel(parser.get_method())
            return  # it comes again, without that
        self._begin_exchange()
        self._phase = _BODY
        self._unused = 0
        if self._waits is not None:
            self._wait(None)  # each request has time of its own, also where one ends and another begins in one piece

    def _again(self, head: Head, body: bytes) -> None:
        """A whole request whose head has been read before."""
        scope: Any = {**self._fixed_scope, **head.scope, "state": self.app_state.copy()}
        # The time to wait for it may go on: when it is over, `overdue` sees that there is nothing to wait for.
        self.cycle = cycle = Cycle(self, scope, keep_alive=not self.wire.closing)
        cycle.body, cycle.more_body = body, False
        cycle.message_event.set()
        # Whoever does not read what was answered waits for its next answer where waiting is possible.
        if head.begin is not None and not self.flow.write_paused:
            head.begin(scope, cycle, cast("set[Any]", self.tasks))
        else:
            scope[SHORT_WAY] = cycle
            self._start_asgi_task(cycle, self.app)

    def _begin_exchange(self) -> None:
        """Put the scope together, and start the application unless an earlier request on this connection is in work."""
        self._requests += 1
        parser, scope = self.parser, self.scope
        version = parser.get_http_version()
        method = parser.get_method()
        target = httptools.parse_url(self.url)
        raw_path: bytes = target.path
        path = raw_path.decode("ascii")
        scope["method"] = method.decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = target.query or b""
        before = self.cycle
        keep_alive = version != "1.0" and parser.should_keep_alive() and not self.wire.closing
        self.cycle = cycle = Cycle(self, scope, keep_alive=keep_alive)
        cycle.waiting_for_100_continue = self.expect_100_continue
        scope[SHORT_WAY] = cycle  # type: ignore[literal-required]
        if before is None or before.response_complete:  # type: ignore[redundant-expr]  # uvicorn says it is never None
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._unused = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        if self._phase == _BODY:
            self._phase = _IDLE
            super().on_message_complete()

    def _without_upgrade(self, rest: bytes) -> None:
        """The parser stops behind the head of a request that asks for another protocol.

        None is spoken here, so the request is parsed again as if it had not asked.
        """
        line = (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        headers = [b"%s: %s" % pair for pair in self.headers if pair[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self._phase = _IDLE
        self.data_received(b"\r\n".join([b"%s %s HTTP/%s" % line, *headers, b"", rest]))

    def _check_progress(self) -> None:
        """Raises where the parser only collects: a header, a trailer or a chunk's extension that has no end."""
        if self._phase == _HEAD:
            raise self._headers_too_large()
        if self._phase == _BODY:
            raise MalformedRequest("a chunk's extension or a trailer is too long")

    def _fits(self) -> bool:
        size = sum(len(name) + len(value) + _BESIDE_A_HEADER for name, value in self.headers)
        return size <= self.wire.most_header_bytes

    def _headers_too_large(self) -> HeadersTooLarge:
        most, most_bytes = self.wire.most_headers, self.wire.most_header_bytes
        return HeadersTooLarge(f"a request may have {most} headers, and {most_bytes} bytes of them")

    def _begun(self, before: int, data: bytes) -> int:
        """The phase where no request has come: blank lines may, and a part of a method has not been reported yet."""
        if before == _IDLE and data.strip(b"\r\n"):
            self._phase = _HEAD
        return self._phase

    def _answering(self) -> bool:
        """Whether a request that has come is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _wait(self, phase: int | None) -> None:
        """From now on for what ends this phase, or for nothing."""
        self._waits = phase
        if phase is None:
            self.wire.deadlines.clear(self)
        else:
            self._since = self.loop.time()
            self.wire.deadlines.start(self, self._seconds[phase], self.loop)

    # Refusals.
    def _refuse(self, error: PresageError) -> None:
        """Answer with an error once all earlier requests are answered, and then close.

        A refusal is an exchange like any other, with an application of its own, so it keeps its place in the queue.
        """
        broken = self.cycle if self._phase == _BODY else None
        if broken is None:  # else the application has it, and counts it
            seconds = self.loop.time() - self._since if self._waits in (_HEAD, _BODY) else 0.0
            self.wire.metrics.record_http("OTHER", "none", error.status, seconds)
        method = self.parser.get_method().decode() if self.url else "GET"
        self._phase = _REFUSED
        self._wait(None)
        if self.transport.is_closing():
            return
        if broken is not None and broken.response_started:
            self._end(broken)
            return
        refusal = Cycle(self, cast("Any", {"type": "http", "method": method}), keep_alive=False)
        app = cast("Any", partial(_answer, error))
        if self.pipeline and self.pipeline[0][0] is broken:
            self.pipeline[0] = (refusal, app)
        elif broken is None and self._answering():
            self.pipeline.appendleft((refusal, app))
        else:
            self._start_asgi_task(refusal, app)
        if broken is not None:
            broken.disconnected = True  # nothing that is made of half a request goes out
            broken.message_event.set()
        self.cycle = refusal

    def _end(self, answered: RequestResponseCycle) -> None:
        """The caller has an answer, or is getting one, before the request was complete: that one has to do."""
        answered.keep_alive = False
        if answered.response_complete:
            self.transport.close()


async def _answer(error: PresageError, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 -- an app's
    """The application behind what never became a request: a problem document, and one log line."""
    identifier = random_hex()
    status, headers, body = render(error, identifier)
    say = log.debug if status in QUIET else log.info
    say("request_refused", status=status, code=error.code, request_id=identifier)
    headers += [*SECURITY_HEADERS, (REQUEST_ID, identifier.encode())]
    await send_early_answer(receive, send, status, headers, body)


def guarded(
    settings: Settings, metrics: Metrics, straight: Callable[[Scope], Begin | None] = lambda _: None
) -> type[GuardedProtocol]:
    """The protocol for `uvicorn.Config(http=…)`, bound to the settings of one process.

    `straight` says which requests may begin without a task, and how; see `KnownHeads`.
    """

    class Bound(GuardedProtocol):
        __slots__ = ()
        wire = Wire(settings, metrics, straight)

    return Bound


def _nothing() -> None:
    """Do it."""


def _reason(error: Exception) -> PresageError:
    """Why nothing more is parsed: we stopped it, inside the parser or outside, or it met something that is not HTTP."""
    for found in (error, error.__context__):
        if isinstance(found, PresageError):
            return found
    return MalformedRequest("this is not HTTP/1.1, or can be read in two ways")
