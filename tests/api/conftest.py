"""An application for what is read from the log and put beside it: once with each database."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.config import ModelSettings, Settings, StorageSettings
from app.storage.migrations import upgrade
from tests.support.asgi import OPEN, UNLIMITED, InProcess, in_process
from tests.support.demo import MODULES
from tests.support.postgres import running_postgres


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def logged_app(
    request: pytest.FixtureRequest, models_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InProcess]:
    """All models loaded, a journal, and a migrated database behind it."""
    folder = tmp_path_factory.mktemp("logged")
    if request.param == "sqlite":
        yield from _started(f"sqlite:///{folder}/presage.db", folder, models_dir)
    else:
        with running_postgres() as server:
            yield from _started(server.url(), folder, models_dir)


def _started(url: str, folder: Path, models_dir: Path) -> Iterator[InProcess]:
    storage = StorageSettings(database_url=SecretStr(url), journal_dir=folder / "journal")
    upgrade(storage)
    models = ModelSettings(models_dir=models_dir, model_modules=(MODULES,))
    with in_process(Settings(auth=OPEN, limits=UNLIMITED, models=models, storage=storage)) as started:
        yield started
