"""Everything with a lifetime: opened once, in order, and closed in reverse, however we leave."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from app.config import Settings
from app.inference.service import PredictionService
from app.registry.registry import ModelRegistry
from app.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Services:
    """What routes and commands work with."""

    settings: Settings
    metrics: Metrics
    registry: ModelRegistry
    predictions: PredictionService


@asynccontextmanager
async def open_services(settings: Settings, metrics: Metrics) -> AsyncIterator[Services]:
    """The service without its web application."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        registry = await enter(ModelRegistry(settings.models, metrics))
        predictions = await enter(PredictionService(registry, metrics))
        yield Services(settings, metrics, registry, predictions)
