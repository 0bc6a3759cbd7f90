"""The registry serves what aliases name, says why the rest is not served, and knows what a caller means."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.config import ModelSettings
from app.errors import ModelNotFound, ModelNotServing, NotReady, VersionNotFound
from app.registry.registry import ModelRegistry
from app.telemetry.metrics import Metrics
from tests.support.versions import write_classifier


def _loaded(root: Path, metrics: Metrics | None = None, **settings: Any) -> ModelRegistry:
    """A registry that has loaded what there is."""
    settings.setdefault("default_model", "toy")
    registry = ModelRegistry(ModelSettings(models_dir=root, **settings), metrics or Metrics())

    async def load() -> None:
        async with registry:
            await registry.loaded()

    asyncio.run(load())
    return registry


def test_versions_are_numbers_and_two_comes_before_ten(tmp_path: Path) -> None:
    """What is no version number is not looked at."""
    for version in (10, 2, 1):
        write_classifier(tmp_path, version=version)
    for name in ("01", "0", "1a", ".partial", "v3"):
        (tmp_path / "toy" / name).mkdir()
    registry = _loaded(tmp_path)
    assert list(registry.model("toy").versions) == [1, 2, 10]


def test_without_aliases_the_newest_version_is_the_champion(tmp_path: Path) -> None:
    """Dropping a folder in is enough to be served."""
    for version in (9, 10):
        write_classifier(tmp_path, version=version)
    registry = _loaded(tmp_path)
    assert registry.resolve("toy", "champion").version == 10
    assert registry.ready
    assert registry.model("toy").versions[9].state == "idle"


def test_only_what_an_alias_names_is_loaded(tmp_path: Path) -> None:
    """A version without an alias costs no memory; its manifest is known all the same."""
    for version in (1, 2, 3):
        write_classifier(tmp_path, version=version)
    (tmp_path / "toy/aliases.json").write_text('{"champion": 2, "v1": 1}')
    registry = _loaded(tmp_path)
    states = {version: entry.state for version, entry in registry.model("toy").versions.items()}
    assert states == {1: "serving", 2: "serving", 3: "idle"}
    assert registry.model("toy").versions[3].manifest is not None
    assert registry.resolve("toy", "v1").version == 1
    assert registry.resolve("toy", "2").version == 2
    with pytest.raises(VersionNotFound, match="versions: 1, 2, 3; aliases: champion, v1"):
        registry.resolve("toy", "3")


@pytest.mark.parametrize("wanted", ["", "0", "9" * 40, "-1", "V1", "champion ", "../1", "\uff11"])
def test_a_version_that_does_not_exist_is_not_found(tmp_path: Path, wanted: str) -> None:
    """Whatever it is spelt like."""
    write_classifier(tmp_path)
    with pytest.raises(VersionNotFound):
        _loaded(tmp_path).resolve("toy", wanted)


def test_an_unknown_model_is_not_found_and_the_others_are_named(tmp_path: Path) -> None:
    """The error says which there are."""
    write_classifier(tmp_path)
    with pytest.raises(ModelNotFound, match="models: toy"):
        _loaded(tmp_path).resolve("iris", "champion")


def test_a_refused_version_does_not_keep_the_others_from_being_served(tmp_path: Path) -> None:
    """Its reason is known, and asking for it is a 503 with that reason."""
    write_classifier(tmp_path)
    write_classifier(tmp_path, name="broken")
    (tmp_path / "broken/1/model.joblib").write_bytes(b"damaged")
    registry = _loaded(tmp_path)
    assert registry.ready
    assert registry.resolve("toy", "champion").version == 1
    refusal = registry.model("broken").versions[1].refusal
    assert refusal is not None
    assert refusal.reason == "digest_mismatch"
    with pytest.raises(ModelNotServing, match="broken 1 is not served: digest_mismatch") as caught:
        registry.resolve("broken", "champion")
    assert caught.value.retry_after == 30


def test_a_required_model_that_is_refused_or_missing_keeps_the_service_from_being_ready(tmp_path: Path) -> None:
    """Ready means that every required model serves its champion."""
    write_classifier(tmp_path)
    write_classifier(tmp_path, name="broken")
    (tmp_path / "broken/1/model.joblib").write_bytes(b"damaged")
    assert not _loaded(tmp_path, required_models=("toy", "broken")).ready
    assert not _loaded(tmp_path, required_models=("toy", "absent")).ready
    assert _loaded(tmp_path, required_models=("toy",)).ready


def _write(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text)

    return write


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (_write("{"), "aliases_invalid"),
        (_write('{"champion": "1"}'), "aliases_invalid"),
        (_write('{"1": 1}'), "aliases_invalid"),
        (_write('{"champion": 7}'), "alias_dangles"),
        (lambda path: path.mkdir(), "aliases_unreadable"),
    ],
)
def test_aliases_that_cannot_be_used_have_a_reason(tmp_path: Path, write: Callable[[Path], None], reason: str) -> None:
    """The model is not served, and says why."""
    write_classifier(tmp_path)
    write(tmp_path / "toy/aliases.json")
    registry = _loaded(tmp_path)
    refusal = registry.model("toy").refusal
    assert refusal is not None
    assert refusal.reason == reason
    assert not registry.ready
    with pytest.raises(ModelNotServing, match=reason):
        registry.resolve("toy", "champion")


@pytest.mark.parametrize(("alias", "ready"), [("v1", False), ("challenger", True)])
def test_ready_means_the_champion_and_the_pinned_versions(tmp_path: Path, alias: str, ready: bool) -> None:  # noqa: FBT001
    """Callers of the frozen contract rely on what `v1` names; nobody relies on a challenger."""
    write_classifier(tmp_path, version=1)
    write_classifier(tmp_path, version=2)
    (tmp_path / "toy/1/model.joblib").write_bytes(b"damaged")
    (tmp_path / "toy/aliases.json").write_text(f'{{"champion": 2, "{alias}": 1}}')
    registry = _loaded(tmp_path)
    assert registry.resolve("toy", "champion").version == 2
    assert registry.ready is ready


def test_an_alias_that_dangles_leaves_the_others_alone(tmp_path: Path) -> None:
    """The champion is served although `v1` names a version that is gone."""
    write_classifier(tmp_path, version=2)
    (tmp_path / "toy/aliases.json").write_text('{"champion": 2, "v1": 1}')
    registry = _loaded(tmp_path)
    assert registry.resolve("toy", "champion").version == 2
    with pytest.raises(ModelNotServing, match="alias_dangles"):
        registry.resolve("toy", "v1")
    with pytest.raises(VersionNotFound):
        registry.resolve("toy", "v2")


def test_a_models_folder_that_is_missing_or_odd_is_an_empty_one(tmp_path: Path) -> None:
    """The service starts, and is not ready."""
    assert not _loaded(tmp_path / "absent").models
    (tmp_path / "README.md").write_text("no model")
    (tmp_path / "empty").mkdir()
    (tmp_path / "Not a name" / "1").mkdir(parents=True)
    registry = _loaded(tmp_path)
    assert not registry.models
    assert not registry.ready


def test_while_a_model_is_being_loaded_it_is_not_ready_yet(tmp_path: Path) -> None:
    """A caller is told to come back in a second."""
    write_classifier(tmp_path)
    registry = ModelRegistry(ModelSettings(models_dir=tmp_path, default_model="toy"), Metrics())

    async def ask_early() -> NotReady:
        async with registry:
            with pytest.raises(NotReady) as caught:
                registry.resolve("toy", "champion")
            await registry.loaded()
            assert registry.resolve("toy", "champion").version == 1
            return caught.value

    assert asyncio.run(ask_early()).retry_after == 1


def test_what_is_served_is_a_metric(tmp_path: Path) -> None:
    """One for each version that is served, zero for one that is refused."""
    write_classifier(tmp_path)
    write_classifier(tmp_path, name="broken")
    (tmp_path / "broken/1/model.joblib").write_bytes(b"damaged")
    registry = _loaded(tmp_path)
    samples = registry._metrics.registry.get_sample_value
    assert samples("presage_model_serving", {"model": "toy", "version": "1"}) == 1
    assert samples("presage_model_serving", {"model": "broken", "version": "1"}) == 0
    assert samples("presage_ready") == 1


@pytest.mark.parametrize(("setting", "runtime"), [("auto", "folded linear"), ("off", "scikit-learn")])
def test_what_executes_a_version_is_a_metric_and_a_setting(tmp_path: Path, setting: str, runtime: str) -> None:
    """COMPILE=off leaves everything to scikit-learn; the gauge names what answers."""
    write_classifier(tmp_path)
    metrics = Metrics()
    registry = _loaded(tmp_path, metrics, compile=setting)
    model = registry.resolve("toy", "1")
    assert model.runtime.name == runtime
    assert bool(model.forms) == (setting == "auto")
    labels = {"model": "toy", "version": "1"}
    assert metrics.registry.get_sample_value("presage_model_runtime", {**labels, "runtime": runtime}) == 1
    fallbacks = metrics.registry.get_sample_value("presage_runtime_fallbacks_total", labels)
    assert fallbacks == (0 if setting == "auto" else None)
