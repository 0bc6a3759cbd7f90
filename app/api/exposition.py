"""`/metrics`: what Prometheus reads, of this process or of all workers, whichever of them is asked."""

from typing import Any

from fastapi import FastAPI, Response
from starlette.concurrency import run_in_threadpool

from app.telemetry.metrics import CONTENT_TYPE, Metrics
from app.telemetry.shared import Snapshots


def add_exposition(app: FastAPI, access: dict[str, Any], metrics: Metrics, snapshots: Snapshots | None) -> None:
    """Serve `/metrics` to those with that access; with snapshots, of all workers."""

    @app.get("/metrics", include_in_schema=False, openapi_extra=access)
    async def exposition() -> Response:
        if snapshots is not None:
            await snapshots.refresh()
        # Milliseconds, for which predictions need not wait.
        text = await run_in_threadpool((snapshots or metrics).exposition)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})
