"""What could not be recorded comes on record while the service runs, without anybody's asking."""

import asyncio
from pathlib import Path

from pydantic import SecretStr

from app.config import StorageSettings
from app.registry.aliases import write_aliases
from app.release.changes import Releases
from app.release.settling import Settling
from app.storage.database import Database
from tests.support.releases import settings, write_pair


def test_a_rollback_is_recorded_once_the_database_is_back(tmp_path: Path, pg_url: str) -> None:
    """Several processes look; there is one row."""
    write_pair(tmp_path)
    write_aliases(tmp_path / "toy" / "aliases.json", {"champion": 2, "previous": 1})
    nowhere = StorageSettings(database_url=SecretStr("postgresql://nobody@127.0.0.1:1/nothing"))
    with Database(nowhere) as away, Database(StorageSettings(database_url=SecretStr(pg_url))) as back:
        assert not Releases(settings(tmp_path), away).rollback("toy", by="ann").recorded
        releases = Releases(settings(tmp_path), back)

        async def settled() -> None:
            # The first cannot reach the database; it goes on trying, and keeps nobody from it.
            async with (
                Settling(Releases(settings(tmp_path), away), every=0.01),
                Settling(releases, every=0.01),
                Settling(Releases(settings(tmp_path), back), every=0.01),
                asyncio.timeout(20),
            ):
                while releases.unsettled():  # noqa: ASYNC110 -- of another process there is no event
                    await asyncio.sleep(0.01)

        asyncio.run(settled())
        assert [(entry.principal, entry.action) for entry in releases.history("toy", 10)] == [("ann", "model.rollback")]
