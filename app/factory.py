"""Put the web application together: `create_app(settings)`.

The application is a FastAPI whose own `__call__` is the gate, so that there is no way around it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from prometheus_fastapi_instrumentator import Instrumentator
from prometheus_fastapi_instrumentator.metrics import Info
from starlette.types import Receive, Scope, Send

from app import __version__
from app.api import admin, admin_models, catalog, feedback, health, oauth, openapi, predictions, usage, v1, v2
from app.api.access import PUBLIC, needs
from app.api.exchange import ShortWay
from app.api.exposition import add_exposition
from app.api.gate import Gate, hot_routes
from app.api.guard import Guard
from app.api.heads import Begin
from app.api.problems import install_handlers
from app.api.straight import Exchange
from app.config import Settings, read_settings
from app.telemetry.metrics import Metrics
from app.web.pages import add_docs_page
from app.wiring import Inheritance, Services, open_services

_DESCRIPTION = """Fitted scikit-learn pipelines behind HTTP.

Errors are [problem documents](https://www.rfc-editor.org/rfc/rfc9457) with a stable `code` and the request's id."""

# In the order of the docs page.
_TAGS = [
    {"name": "version 1", "description": "The frozen first contract: the sentiment of texts."},
    {"name": "version 2", "description": "Any model, any version; errors row by row."},
    {"name": "catalog", "description": "Which models there are, what they take, and how good they are."},
    {"name": "prediction log", "description": "What was answered, and what turned out to be true."},
    {"name": "access", "description": "Tokens, and what is left of a plan."},
    {"name": "administration", "description": "Clients, their keys and tokens."},
    {"name": "releases", "description": "Which versions of a model answer, since when, and on which evidence."},
    {"name": "health", "description": "For probes and balancers."},
]


class Service(FastAPI):
    """The web application of one service."""

    gate: Gate
    settings: Settings
    # Open while the lifespan lasts. Attributes, not in `state`: the hot routes ask for them with each request.
    services: Services
    guard: Guard
    # Whether the service as a whole takes requests only for those who do not know yet.
    stopping = False

    def note_stopping(self) -> None:
        """From now on it is not ready."""
        self.stopping = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every HTTP request passes the gate; hot routes never get further."""
        if scope["type"] == "http":
            scope["app"] = self
            await self.gate(scope, receive, send, super().__call__)
        else:
            await super().__call__(scope, receive, send)

    def straight(self, scope: Scope) -> Begin | None:
        """How our own wire may begin requests with such a head, where they need no task."""
        found = self.gate.straight(scope)
        if found is None:
            return None
        route, parameters = found

        def begin(scope: Scope, wire: ShortWay, running: set[Any]) -> None:
            scope["app"] = self
            scope["path_params"] = parameters
            Exchange(route, scope, wire, running).begin()

        return begin

    def openapi(self) -> dict[str, Any]:
        """The document of what is loaded now; made anew only when that has changed."""
        registry = self.services.registry
        if self._document is None or self._document[0] != registry.generation:
            document = openapi.complete(super().openapi(), registry.models, self.settings)
            self._document = (registry.generation, document)
        return self._document[1]

    _document: tuple[int, dict[str, Any]] | None = None


def create_app(settings: Settings | None = None, inheritance: Inheritance | None = None) -> Service:
    """The application for these settings, or for those in the environment. Nothing is opened before its lifespan.

    With an `inheritance` it is the application of one worker of several.
    """
    settings = settings or read_settings()
    metrics = inheritance.snapshots.metrics if inheritance else Metrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with open_services(settings, metrics, inheritance) as services:
            service.services = services
            service.guard = Guard(services)
            yield

    app = service = Service(
        title="Presage",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_tags=_TAGS,
        openapi_url=None,  # it is a route among others, with a declaration of who may read it
        redirect_slashes=False,
    )
    app.settings = settings
    app.state.metrics = metrics
    for part in (v1, v2, catalog, predictions, feedback, oauth, usage, admin, admin_models, health):
        app.include_router(part.router)
    if settings.place.docs_exposure != "off":
        add_docs_page(app, _ACCESS[settings.place.docs_exposure])
    install_handlers(app)
    _instrument(app, metrics)
    if settings.place.metrics_exposure != "off":
        snapshots = inheritance.snapshots if inheritance else None
        add_exposition(app, _ACCESS[settings.place.metrics_exposure], metrics, snapshots)
    app.gate = Gate(app.routes, settings, metrics)
    return app


_ACCESS = {"on": PUBLIC, "token": needs("read")}


def _instrument(app: FastAPI, metrics: Metrics) -> None:
    """Cold routes; hot routes count themselves, through whichever door they are reached."""

    def record(info: Info) -> None:
        metrics.record_http(info.method, info.modified_handler, info.modified_status, info.modified_duration)

    instrumentator = Instrumentator(
        registry=metrics.registry,
        should_group_status_codes=False,
        excluded_handlers=[f"^{path}$" for path in hot_routes(app.routes)],
    )
    instrumentator.add(record).instrument(app)
