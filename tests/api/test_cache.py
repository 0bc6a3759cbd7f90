"""What callers and operators see of the cache: the same answers, the ready body, the catalog, metrics and the log."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.config import CacheSettings, ModelSettings, Settings, StorageSettings, read_settings
from app.errors import InvalidSettings
from app.storage.migrations import upgrade
from tests.support.asgi import OPEN, UNLIMITED, Answer, InProcess, in_process
from tests.support.demo import MODULES

TEXTS = ["I love this product", "ne\u0301e", "née", "I love this product", "", 1, "it broke"]


def iris(length: float) -> dict[str, float]:
    """A flower."""
    return {"sepal length (cm)": length, "sepal width (cm)": 3.5, "petal length (cm)": 1.4, "petal width (cm)": 0.2}


REQUESTS: tuple[tuple[str, Any], ...] = (
    ("/predict", {"text": "I love this product"}),
    ("/v1/batch", {"texts": ["I love this product", "it broke", "it broke"]}),
    ("/v1/batch", {"texts": TEXTS}),
    ("/v2/batch", {"inputs": [{"text": text} for text in TEXTS]}),
    ("/v2/predict/iris", {"inputs": iris(5)}),
    ("/v2/batch/iris", {"inputs": [iris(6), {}, iris(7.5)]}),
    ("/v2/predict/double", {"inputs": {"x": 3}}),
    ("/v2/batch/brittle", {"inputs": [{"x": number} for number in (5, 13, 5, 13, 12)]}),
)


@pytest.fixture(scope="module")
def plain(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """Without a cache."""
    with in_process(_settings(models_dir, tmp_path_factory.mktemp("plain"), "off")) as started:
        yield started


@pytest.fixture
def cached(models_dir: Path, tmp_path: Path) -> Iterator[InProcess]:
    """With one, empty."""
    with in_process(_settings(models_dir, tmp_path, "memory")) as started:
        yield started


def _settings(models_dir: Path, folder: Path, cache: Any) -> Settings:
    url = SecretStr(f"sqlite:///{folder}/presage.db")
    storage = StorageSettings(database_url=url, journal_dir=folder / "journal")
    upgrade(storage)
    # Compiled, these small models answer sooner than any cache.
    models = ModelSettings(models_dir=models_dir, model_modules=(MODULES,), compile="off")
    return Settings(auth=OPEN, limits=UNLIMITED, models=models, storage=storage, cache=CacheSettings(cache=cache))


def test_answers_are_the_same_to_the_byte(plain: InProcess, cached: InProcess) -> None:
    """Computed or found, alone or in a batch, right or wrong: but for ids and times, nobody can tell."""
    for _ in range(2):
        for path, document in REQUESTS:
            assert _comparable(cached, path, document) == _comparable(plain, path, document)
    found = [_count(cached, name, version, "hit_memory") for name, version in (("iris", 1), ("sentiment", 2))]
    assert all(found)


def test_a_row_has_one_answer_whatever_it_comes_with(plain: InProcess, cached: InProcess) -> None:
    """To the last digits, which arithmetic on a batch may round in another way, with or without a cache."""
    rows = [iris(5), iris(6), iris(5.0)]
    for count in (1, 2, 3, 3):
        document = {"inputs": rows[:count]}
        found, computed = (app.request("POST", "/v2/batch/iris", json_body=document).json() for app in (cached, plain))
        for one, other in zip(found["results"], computed["results"], strict=True):
            assert one["prediction"] == other["prediction"]
            assert one["probabilities"] == pytest.approx(other["probabilities"], rel=1e-12)


def _comparable(app: InProcess, path: str, document: Any) -> tuple[int, str]:
    answer: Answer = app.request("POST", path, json_body=document)
    without_ids = re.sub(r'"(id|request_id)":"[^"]*"', r'"\1":""', answer.body.decode())
    return answer.status, re.sub(r'"(model_ms|total_ms)":[0-9.]+', r'"\1":0', without_ids)


def _count(app: InProcess, name: str, version: int, outcome: str) -> float:
    labels = {"model": name, "version": str(version), "outcome": outcome}
    return app.app.services.metrics.registry.get_sample_value("presage_cache_rows_total", labels) or 0


def test_the_log_says_of_each_row_whether_it_was_computed(cached: InProcess) -> None:
    """Valid rows between invalid ones included."""
    texts = [{"text": text} for text in ("one", "", "two", "one")]
    ids: list[str] = []
    for _ in range(2):
        results = cached.request("POST", "/v2/batch", json_body={"inputs": texts}).json()["results"]
        ids += [result["id"] for result in results if "id" in result]
    said = [_logged(cached, identifier)["cached"] for identifier in ids]
    assert said == [False, False, True, True, True, True]


def _logged(app: InProcess, identifier: str) -> Any:
    while (answer := app.request("GET", f"/v2/predictions/{identifier}")).status == 404:
        app.run(_turn())
    return answer.json()


async def _turn() -> None:
    await asyncio.sleep(0.01)


def test_an_operator_sees_where_answers_are_kept(plain: InProcess, cached: InProcess) -> None:
    """In the ready body for the service, in the catalog for each version."""
    assert plain.request("GET", "/health/ready").json()["cache"] == "off"
    assert cached.request("GET", "/health/ready").json()["cache"] == "memory"
    for app, use in ((plain, "off"), (cached, "memory")):
        (version,) = app.request("GET", "/v2/catalog/iris").json()["versions"]
        assert version["cache"] == use


def test_redis_without_an_address_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a line that names both settings."""
    monkeypatch.setenv("CACHE", "redis")
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(InvalidSettings, match="CACHE=redis needs REDIS_URL"):
        read_settings()
