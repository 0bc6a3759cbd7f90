"""The service without its gate, to measure against.

Nobody is asked who they are, and nothing is counted.

    python -m benchmarks.ungated            no gate, on our wire
    python -m benchmarks.ungated --stock    neither: the wire is uvicorn's own
"""

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import uvicorn
from starlette.types import Scope

from app.api.exchange import Fixed, fixed_on_json
from app.api.guard import Admission
from app.api.protocol import guarded
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
    _take_away_the_gate(app)
    stock = "--stock" in sys.argv
    uvicorn.run(
        app,
        port=settings.server.port,
        http="httptools" if stock else guarded(settings, app.state.metrics, app.straight),
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
    answer = fixed_on_json({"scheme": "http"})
    answer.pairs = answer.pairs[:1]  # the type of the content
    answer.lines = Fixed(*answer.pairs).lines


if __name__ == "__main__":
    main()
