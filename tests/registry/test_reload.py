"""What changes on disk is taken while callers are served, or changes nothing; what nobody needs is let go."""

import asyncio
import gc
import shutil
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.config import ModelSettings
from app.errors import ModelNotServing, VersionBeingLoaded, VersionNotFound
from app.registry.registry import ModelRegistry
from app.telemetry.metrics import Metrics
from tests.support.demo import MODULES
from tests.support.estimators import Deadly, Hanging
from tests.support.versions import NUMBER, one_golden, point, write_constant, write_version

ODD: dict[str, Any] = {"task": "regression", "outputs": NUMBER, "golden": one_golden(0.0)}


def run(test: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """A test on an event loop of its own."""

    def runs(tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(test(tmp_path), 60))

    runs.__name__, runs.__doc__ = test.__name__, test.__doc__
    return runs


@asynccontextmanager
async def opened(root: Path, **settings: Any) -> AsyncIterator[ModelRegistry]:
    """A registry that has loaded what aliases name."""
    settings = {"default_model": "toy", "model_modules": (MODULES,), **settings}
    registry = ModelRegistry(ModelSettings(models_dir=root, **settings), Metrics())
    async with registry:
        await registry.loaded()
        yield registry


async def taken(registry: ModelRegistry) -> None:
    """What is on disk now has been taken, or refused."""
    await registry.refreshed()
    await registry.loaded()


async def demand(registry: ModelRegistry, version: int) -> int:
    """What answers for that number, when it is loaded."""
    while True:
        try:
            return registry.resolve("toy", str(version)).version
        except VersionBeingLoaded as error:
            await asyncio.wait([registry.coming(error.model, error.version)])


@run
async def test_a_new_version_and_a_moved_alias_are_taken_while_it_runs(root: Path) -> None:
    """The old version goes once no alias names it."""
    write_constant(root, 1)
    point(root, champion=1)
    async with opened(root) as registry:
        write_constant(root, 2)
        await taken(registry)
        assert registry.resolve("toy", "champion").version == 1
        assert registry.model("toy").versions[2].state == "idle"
        point(root, champion=2, previous=1)
        await taken(registry)
        assert registry.resolve("toy", "champion").version == 2
        assert registry.resolve("toy", "previous").version == 1
        point(root, champion=2)
        await taken(registry)
        assert registry.model("toy").versions[1].state == "idle"


@run
async def test_a_new_model_is_served_and_one_that_vanishes_goes_on_being_served(root: Path) -> None:
    """A disk that is away must not end what is in memory."""
    write_constant(root, 1)
    async with opened(root) as registry:
        write_constant(root, 1, name="other")
        await taken(registry)
        assert registry.resolve("other", "champion").version == 1
        shutil.rmtree(root / "toy")
        await taken(registry)
        assert registry.resolve("toy", "champion").version == 1
        root.rename(root.with_name("elsewhere"))  # noqa: ASYNC240 -- of the test alone
        await taken(registry)
        assert registry.resolve("other", "champion").version == 1


@run
async def test_without_aliases_a_new_version_becomes_the_champion_once_it_is_loaded(root: Path) -> None:
    """And a folder that is still being copied is not looked at, or is refused until it is whole."""
    write_constant(root, 1)
    async with opened(root) as registry:
        write_constant(root.with_name("made"), 2)
        made, target = root.with_name("made") / "toy/2", root / "toy/2"
        target.mkdir()
        await taken(registry)
        shutil.copy(made / "manifest.json", target)
        (target / "model.joblib").write_bytes((made / "model.joblib").read_bytes()[:100])
        await taken(registry)
        assert registry.resolve("toy", "champion").version == 1
        refusal = registry.model("toy").versions[2].refusal
        assert refusal is not None
        assert refusal.reason == "digest_mismatch"
        assert registry.model("toy").pending == {"champion": 2}
        shutil.copy(made / "model.joblib", target)
        await taken(registry)
        assert registry.resolve("toy", "champion").version == 2
        assert not registry.model("toy").pending


@run
async def test_a_version_that_is_refused_leaves_the_old_one_serving(root: Path) -> None:
    """Its aliases stay where they answer, all others move."""
    write_constant(root, 1)
    write_constant(root, 2)
    point(root, champion=1, other=1)
    async with opened(root) as registry:
        write_constant(root, 3, golden=one_golden(7.0))
        point(root, champion=3, other=2)
        await taken(registry)
        entry = registry.model("toy")
        assert entry.aliases == {"champion": 1, "other": 2}
        assert entry.pending == {"champion": 3}
        assert entry.versions[3].refusal is not None
        assert entry.versions[3].refusal.reason == "golden_mismatch"
        assert entry.ready


@run
async def test_aliases_that_cannot_be_read_change_nothing_but_say_so(root: Path) -> None:
    """The same goes for rules of traffic."""
    write_constant(root, 1)
    write_constant(root, 2)
    point(root, champion=1)
    async with opened(root) as registry:
        (root / "toy/aliases.json").write_text("{")
        (root / "toy/traffic.json").write_text('{"challenger_weight": 2}')
        await taken(registry)
        refusal = registry.model("toy").refusal
        assert refusal is not None
        assert refusal.reason == "traffic_rules_invalid"
        assert registry.resolve("toy", "champion").version == 1
        (root / "toy/traffic.json").write_text('{"challenger_weight": 0.5}')
        point(root, champion=2)
        await taken(registry)
        assert registry.model("toy").refusal is None
        assert registry.model("toy").traffic.challenger_weight == 0.5
        assert registry.resolve("toy", "champion").version == 2


@run
async def test_an_alias_moves_at_once_while_another_version_is_being_tried(root: Path) -> None:
    """A rollback does not wait for a version that hangs."""
    write_constant(root, 1)
    write_constant(root, 2)
    point(root, champion=2, previous=1)
    trials = {"model_trials": "auto", "model_trial_seconds": 600, "model_trials_dir": root.with_name("trials")}
    async with opened(root, **trials) as registry:
        write_version(root, Hanging(), version=3, **ODD)
        point(root, champion=3, previous=1)
        await registry._reloader.looked()
        assert registry.model("toy").versions[3].state == "loading"
        assert registry.resolve("toy", "champion").version == 2
        point(root, champion=1)
        await registry._reloader.looked()
        assert registry.resolve("toy", "champion").version == 1


@run
async def test_any_version_is_loaded_when_somebody_asks_for_it(root: Path) -> None:
    """Whoever asks meanwhile waits for the same loading; one that does not exist is not found."""
    for version in (1, 2):
        write_constant(root, version)
    point(root, champion=2)
    async with opened(root) as registry:
        with pytest.raises(VersionBeingLoaded):
            registry.resolve("toy", "1")
        assert list(await asyncio.gather(demand(registry, 1), demand(registry, 1))) == [1, 1]
        await taken(registry)
        assert registry.resolve("toy", "1").version == 1
        with pytest.raises(VersionNotFound):
            registry.resolve("toy", "3")


@run
async def test_a_version_that_cannot_be_loaded_on_demand_says_why(root: Path) -> None:
    """In a process of its own it has come to no harm here."""
    write_constant(root, 1)
    write_version(root, Deadly(), version=2, **ODD)
    point(root, champion=1)
    async with opened(root, model_trials="auto", model_trials_dir=root.with_name("trials")) as registry:
        with pytest.raises(ModelNotServing, match="toy 2 is not served: trial_crashed"):
            await demand(registry, 2)
        assert registry.resolve("toy", "champion").version == 1


@run
async def test_what_was_loaded_on_demand_makes_room_and_what_does_not_fit_is_refused(root: Path) -> None:
    """Those first that rest longest; what an alias names is never let go, and a refusal passes with the want."""
    sizes = {}
    for version in (1, 2, 3, 4):
        # Without trials a version is taken to need what its file has.
        sizes[version] = write_constant(root, version).artefact.size
    big = write_constant(root, 5, ballast=4 * sum(sizes.values())).artefact.size
    point(root, champion=1)
    async with opened(root, models_max_bytes=sum(sizes[v] for v in (1, 2, 3))) as registry:
        assert await demand(registry, 2) == 2
        assert await demand(registry, 3) == 3
        assert registry.resolve("toy", "2").version == 2  # so 3 rests longest
        assert await demand(registry, 4) == 4
        states = {n: v.state for n, v in registry.model("toy").versions.items()}
        assert states == {1: "serving", 2: "serving", 3: "idle", 4: "serving", 5: "idle"}
        with pytest.raises(ModelNotServing, match="no_memory"):
            await demand(registry, 5)
        assert registry.resolve("toy", "champion").version == 1
        registry._most_bytes = big + sizes[1]
        entry = registry.model("toy").versions[5]
        assert entry.retry_at < float("inf")


@run
async def test_a_version_that_was_let_go_is_freed(root: Path) -> None:
    """Nothing here holds it any longer."""
    for version in (1, 2):
        write_constant(root, version)
    point(root, champion=1)
    async with opened(root) as registry:
        model = weakref.ref(registry.resolve("toy", "champion").reference)
        samples = registry._metrics.registry.get_sample_value
        point(root, champion=2)
        await taken(registry)
        gc.collect()
        assert model() is None
        assert samples("presage_model_serving", {"model": "toy", "version": "1"}) is None
        assert samples("presage_model_serving", {"model": "toy", "version": "2"}) == 1


@run
async def test_changes_that_come_one_upon_another_end_with_the_last(root: Path) -> None:
    """Whatever was being loaded when the next came."""
    for version in range(1, 8):
        write_constant(root, version)
    point(root, champion=1)
    async with opened(root) as registry:
        for turn in range(60):
            point(root, champion=1 + turn % 7)
            if turn % 5 == 0:
                await registry._reloader.looked()
        await taken(registry)
        assert registry.resolve("toy", "champion").version == 1 + 59 % 7
        assert [n for n, v in registry.model("toy").versions.items() if v.model] == [1 + 59 % 7]


@run
async def test_rules_for_the_log_and_the_cache_are_heeded_as_they_change(root: Path) -> None:
    """By the same estimator; rules that cannot be read change nothing, and refuse nothing that is served."""
    write_constant(root, 1)
    async with opened(root) as registry:
        first = registry.resolve("toy", "champion")
        (root / "toy/log.json").write_text('{"default": "drop"}')
        (root / "toy/cache.json").write_text('{"cache": "off"}')
        await taken(registry)
        second = registry.resolve("toy", "champion")
        assert (second.log_rules.default, second.cache_rules.cache) == ("drop", "off")
        assert second.runtime is first.runtime
        (root / "toy/log.json").write_text('{"fields": {"typo": "drop"}}')
        await taken(registry)
        assert registry.resolve("toy", "champion") is second
        write_constant(root, 2)
        await taken(registry)
        refusal = registry.model("toy").versions[2].refusal
        assert refusal is not None
        assert refusal.reason == "log_rules_invalid"
        (root / "toy/log.json").write_text("{}")
        await taken(registry)
        assert registry.resolve("toy", "champion").version == 2
