"""A version that callers were answered by is freed as soon as another has taken its place."""

import asyncio
import gc
import weakref
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.config import ModelSettings, Settings, StorageSettings
from app.inference.service import PredictionService
from tests.support.asgi import OPEN, UNLIMITED, in_process
from tests.support.versions import point, write_constant


def test_a_version_that_has_answered_is_freed_without_the_garbage_collector(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Which looks at what has lived for long once in a while only, so that versions would pile up."""
    models = tmp_path / "models"
    for version in (1, 2):
        write_constant(models, version)
    point(models, champion=1)
    settings = Settings(
        auth=OPEN,
        limits=UNLIMITED,
        models=ModelSettings(models_dir=models, default_model="toy"),
        storage=StorageSettings(database_url=SecretStr(f"sqlite:///{tmp_path}/p.db"), journal_dir=tmp_path / "journal"),
    )
    with in_process(settings) as app:
        registry = app.app.services.registry
        for version in (2, 1):
            point(models, champion=version)
            app.run(registry.refreshed())
            answer = app.request("POST", "/v2/predict", json_body={"inputs": {"x": 3}})
            assert answer.json()["version"] == version
            if version == 2:
                gc.collect()
                gc.disable()
                request.addfinalizer(gc.enable)
                model = weakref.ref(registry.resolve("toy", "champion").reference)
        app.run(_closed(app.app.services.predictions))
        assert model() is None


async def _closed(predictions: PredictionService) -> None:
    """The desk of the version that has gone is closed."""
    async with asyncio.timeout(10):
        while len(predictions._desks) > 1:  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0.02)
