"""The service without its gate, to measure against.

Nobody is asked who they are, nothing is counted, and the wire is uvicorn's own.

    python -m benchmarks.ungated            neither gate nor guarded wire
    python -m benchmarks.ungated --gate     the gate, on uvicorn's own wire
"""

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import uvicorn
from starlette.types import Scope

from app.api.exchange import SECURITY_HEADERS
from app.api.guard import Admission
from app.auth.authenticator import ANONYMOUS
from app.config import read_settings
from app.factory import Service, create_app
from app.limits.limiter import Grant, RateLimits


class OpenGuard:
    """Lets everybody in."""

    def __init__(self, grant: Grant) -> None:
        self._admission = Admission(ANONYMOUS, ANONYMOUS.subject, grant)

    def admit_to_model(self, scope: Scope, needed: Sequence[str]) -> Admission:  # noqa: ARG002 -- the guard's
        """The same for all."""
        return self._admission

    def admit(self, scope: Scope, needed: Sequence[str]) -> None:
        """Nothing is asked."""


class NoLimits:
    """Counts nothing."""

    state = "off"

    def headers(self, grant: Grant) -> list[tuple[bytes, bytes]]:  # noqa: ARG002 -- the limits'
        """None."""
        return []


def main() -> None:
    """Serve on PORT."""
    settings = read_settings()
    app = create_app(settings)
    if "--gate" not in sys.argv:
        _take_away_the_gate(app)
    uvicorn.run(
        app,
        port=settings.server.port,
        http="httptools",
        ws="none",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_level="warning",
    )


def _take_away_the_gate(app: Service) -> None:
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(service: Any) -> AsyncIterator[None]:
        async with inner(service):
            limits: RateLimits = app.services.limits
            grant = limits.admit("nobody", "nothing")
            app.services = replace(app.services, limits=NoLimits())
            app.guard = OpenGuard(grant)
            yield

    app.router.lifespan_context = lifespan
    SECURITY_HEADERS.clear()


if __name__ == "__main__":
    main()
