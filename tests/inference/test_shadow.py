"""A shadow says nothing to anybody: what it says is counted, and whatever it does, nobody waits for it."""

import asyncio
import gc
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
import pytest
from structlog.testing import capture_logs

from app.inference.execution import answer_together
from app.inference.identifiers import new_ids
from app.inference.shadow import HANG_SECONDS, MOST_WAITING, Shadows, Trial
from app.inference.turns import Call, Part, Terms
from app.manifest import CategoryProfile, NumberProfile, Outputs, Profile, TrafficRules
from app.pipelines.base import RawOutput
from app.registry.entries import ModelEntry, VersionEntry
from app.registry.loader import LoadedModel, load_version
from app.registry.registry import ModelRegistry
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from app.release.comparison import Beside, compare
from app.runtimes.cost import Cost
from app.telemetry.metrics import Metrics
from tests.inference.conftest import ORIGIN, OURS, Book, Load, open_desk
from tests.support.estimators import Slow, Treacherous
from tests.support.versions import NUMBER, X, one_golden, write_classifier, write_version

Write = Callable[..., ModelEntry]


class Stage:
    """A champion, its shadow, and what is counted."""

    def __init__(self, entry: ModelEntry) -> None:
        self.book, self.metrics = Book(), Metrics()
        self.shadows = Shadows(cast("ModelRegistry", self.book), self.metrics)
        self.entry = entry
        self.show(entry)

    def show(self, entry: ModelEntry) -> None:
        """From now on the registry says this."""
        self.entry = entry
        self.book.write(entry)

    @property
    def champion(self) -> LoadedModel:
        """What answers."""
        model = self.entry.versions[1].model
        assert model is not None
        return model

    @property
    def trial(self) -> Trial:
        """What is being tried."""
        trial = self.shadows.of(self.champion)
        assert trial is not None
        return trial

    def offer(self, numbers: Sequence[float | None], seconds: float = 0.001) -> None:
        """As the lane does with a slice that the champion has answered."""
        rows = [{} if number is None else {"x": float(number)} for number in numbers]
        receiver = asyncio.get_running_loop().create_future()
        call = Call(new_ids(len(rows)), rows, [1.0] * len(rows), Terms(ORIGIN), receiver)
        outcomes = answer_together(self.champion, rows)
        trial = self.shadows.of(self.champion)
        if trial is not None:
            trial.offer(self.champion, [Part(call, 0, len(rows))], outcomes, seconds)

    @property
    def found(self) -> Beside:
        """The shadow beside the champion, compared."""
        shadow = compare(self.entry, self.metrics.families()).shadow
        assert shadow is not None
        return shadow.beside[0]

    async def counted(self, rows: int) -> dict[str, int]:
        """The outcomes, once there are so many."""
        await until(lambda: sum(self.found.outcomes.values()) >= rows)
        return self.found.outcomes

    @property
    def stopped(self) -> str | None:
        """Why the shadow gets nothing."""
        shadow = compare(self.entry, self.metrics.families()).shadow
        return shadow.stopped if shadow else None


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Return when it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.01)


@contextmanager
def staged(entry: ModelEntry) -> Iterator[Stage]:
    """To be opened where a loop runs."""
    stage = Stage(entry)
    try:
        yield stage
    finally:
        stage.shadows.close()


def _entry(*models: LoadedModel, name: str = "toy", **rules: Any) -> ModelEntry:
    versions = {m.version: VersionEntry(m.version, "serving", m.manifest, m) for m in models}
    aliases = {"champion": 1, "shadow": 2} if len(models) > 1 else {"champion": 1}
    return ModelEntry(name, versions, aliases, traffic=TrafficRules(**rules))


def _load(root: Path, name: str = "toy") -> list[LoadedModel]:
    source = DirectorySource(root)
    return [load_version(source, name, n, Trust(OURS)) for n in source.versions(name)]


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> list[LoadedModel]:
    """Two that differ for x from 5 to 9."""
    root = tmp_path_factory.mktemp("classifiers")
    write_classifier(root)
    write_classifier(root, version=2, big=5)
    return _load(root)


@pytest.fixture(scope="module")
def regressions(tmp_path_factory: pytest.TempPathFactory) -> list[LoadedModel]:
    """A regression that answers its input, and one that does so but for 13, 14 and 15."""
    root = tmp_path_factory.mktemp("numbers")
    spread = NumberProfile(count=9, missing=0, mean=0, std=4.0, edges=(0.0, 1.0), counts=(9,))
    regression: dict[str, Any] = {"task": "regression", "outputs": NUMBER, "golden": one_golden(0.0, x=0.0)}
    write_version(root, Slow().fit(None, None), profile=Profile(inputs={}, prediction=spread), **regression)
    write_version(root, Treacherous().fit(None, None), version=2, **regression)
    champion, shadow = _load(root)
    return [replace(champion, runtime=_Shifted(0.0)), shadow]


@pytest.fixture
def numbers(regressions: list[LoadedModel]) -> list[LoadedModel]:
    """The same, for a test that may leave one of them hanging."""
    return [replace(model, turn=Lock()) for model in regressions]


def test_the_figures_are_those_of_a_count_by_hand(classifiers: list[LoadedModel]) -> None:
    """Who agreed, who flipped to what, by how much the scores differ, and how long a row took."""
    champion, shadow = classifiers
    rows = [{"x": float(x)} for x in range(20)]
    pairs = list(zip(answer_together(champion, rows), answer_together(shadow, rows), strict=True))

    async def play() -> Beside:
        with staged(_entry(champion, shadow)) as stage:
            for x in range(20):
                stage.offer([x], seconds=0.001)
            await stage.counted(20)
            return stage.found

    found = asyncio.run(play())
    assert found.outcomes == {"agreed": 15, "flipped": 5}
    assert found.flips == {"small": {"big": 5}}
    assert found.agreement is not None
    assert (found.agreement.share, round(found.agreement.low, 4), round(found.agreement.high, 4)) == (
        0.75,
        0.5313,
        0.8881,
    )
    scores = [s.probabilities[a.value] - a.probabilities[a.value] for a, s in pairs]  # type: ignore[union-attr, index]
    assert found.difference is not None
    assert found.difference.rows == 20
    assert found.difference.mean == pytest.approx(np.mean(scores))
    assert found.difference.p50 == pytest.approx(np.median(scores), abs=0.05)
    assert found.row_time is not None
    assert found.row_time.answer_us == pytest.approx(1000, rel=0.3)
    assert found.row_time.ratio == pytest.approx(found.row_time.shadow_us / found.row_time.answer_us)


def test_numbers_differ_in_units_of_their_spread(numbers: list[LoadedModel]) -> None:
    """Four, where the standard deviation in training was four, is one; a hundredth is the same."""
    champion, shadow = numbers
    shifted = replace(shadow, runtime=_Shifted(4.0))
    close = replace(shadow, runtime=_Shifted(0.03))

    async def play(model: LoadedModel) -> Beside:
        with staged(_entry(champion, model)) as stage:
            stage.offer([0.0] * 10)
            await stage.counted(10)
            return stage.found

    found = asyncio.run(play(shifted))
    assert found.outcomes == {"flipped": 10}
    assert found.flips == {}
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(1.0)
    assert asyncio.run(play(close)).outcomes == {"agreed": 10}


class _Shifted:
    """A runtime that adds something to its input."""

    name, steady = "shifted", True

    def __init__(self, by: float) -> None:
        self._by = by

    def predict(self, inputs: Any, rows: int) -> RawOutput:
        return RawOutput(values=np.asarray(inputs)[:, 0] + self._by)


def test_labels_are_bounded(classifiers: list[LoadedModel]) -> None:
    """A model of a thousand labels makes no million series: those beyond the first 20 are one."""
    labels = tuple(f"label {n}" for n in range(1000))
    empty = Profile(inputs={}, prediction=CategoryProfile(count=0, missing=0, counts={}))
    outputs = Outputs(target="t", labels=labels)

    def labelled(model: LoadedModel, shift: int) -> LoadedModel:
        manifest = model.manifest.model_copy(update={"outputs": outputs, "profile": empty})
        return replace(model, manifest=manifest, pipeline=type(model.pipeline)(manifest), runtime=_Labels(shift))

    champion, shadow = labelled(classifiers[0], 0), labelled(classifiers[1], 1)

    async def play() -> Beside:
        with staged(_entry(champion, shadow)) as stage:
            stage.offer(range(999))
            await stage.counted(999)
            return stage.found

    flips = asyncio.run(play()).flips
    assert sum(sum(said.values()) for said in flips.values()) == 999
    assert flips["label 0"] == {"label 1": 1}
    assert flips["label 19"] == {"other": 1}
    assert flips["other"] == {"other": 979}
    assert len(flips) == 21


class _Labels:
    """A runtime that answers the label of its input's number, or of one beyond."""

    name, steady = "labels", True

    def __init__(self, shift: int) -> None:
        self._shift = shift

    def predict(self, inputs: Any, rows: int) -> RawOutput:
        return RawOutput(classes=(np.asarray(inputs)[:, 0].astype(int) + self._shift).tolist())


def test_rows_that_it_does_not_take_are_refused(numbers: list[LoadedModel], tmp_path: Path) -> None:
    """Its own pipeline reads them, and the model is asked about the others."""
    gaps: dict[str, Any] = {"task": "regression", "outputs": NUMBER, "golden": one_golden(0.0, x=0.0)}
    write_version(tmp_path, Slow().fit(None, None), fields=(X.model_copy(update={"missing": "allow"}),), **gaps)
    (champion,) = _load(tmp_path)

    async def play() -> dict[str, int]:
        with staged(_entry(replace(champion, runtime=_Shifted(0.0)), numbers[1])) as stage:
            stage.offer([0.0, None, 1.0])
            return await stage.counted(3)

    assert asyncio.run(play()) == {"agreed": 2, "refused": 1}


def test_one_that_raises_is_counted(numbers: list[LoadedModel]) -> None:
    """The rows of that call have failed, one log line says why, and it goes on."""

    async def play() -> dict[str, int]:
        with staged(_entry(*numbers)) as stage:
            for x in (0.0, 13.0, 13.0, 1.0, 2.0):
                stage.offer([x])
            return await stage.counted(5)

    with capture_logs() as logs:
        assert asyncio.run(play()) == {"agreed": 3, "failed": 2}
    assert [line["event"] for line in logs] == ["shadow_began", "shadow_failed"]


def test_what_waits_is_bounded(numbers: list[LoadedModel]) -> None:
    """While a shadow is busy, a thousand rows wait for it and no more; the others are counted as dropped."""
    shadow = numbers[1]

    async def play() -> dict[str, int]:
        with staged(_entry(*numbers)) as stage:
            with shadow.turn:
                for _ in range(100):
                    stage.offer([1.0] * 50)
                dropped = stage.found.outcomes["dropped"]
            assert dropped == 5_000 - MOST_WAITING // 50 * 50
            return await stage.counted(5_000)

    assert asyncio.run(play()) == {"agreed": 1_000, "dropped": 4_000}


def test_it_is_tried_on_its_share(numbers: list[LoadedModel]) -> None:
    """A quarter of the calls, or none."""

    async def play(share: float) -> int:
        with staged(_entry(*numbers, shadow_share=share)) as stage:
            for _ in range(2_000):
                stage.offer([1.0])
            trial = stage.shadows.of(stage.champion)
            if trial is not None:
                await until(lambda: trial._offered == trial._taken)
            return sum(stage.found.outcomes.values())

    assert asyncio.run(play(0.0)) == 0
    assert 400 < asyncio.run(play(0.25)) < 600
    assert asyncio.run(play(1.0)) == 2_000


@pytest.mark.parametrize("x", [14.0, 15.0], ids=["sleeps", "counts"])
def test_one_that_hangs_is_given_up(numbers: list[LoadedModel], x: float) -> None:
    """After five seconds it gets no more rows and everybody can see why; Python code is interrupted."""

    async def play() -> None:
        with staged(_entry(*numbers)) as stage, capture_logs() as logs:
            stage.offer([1.0])
            await stage.counted(1)
            stage.offer([x])
            stage.offer([2.0])
            began, late = time.monotonic(), 0.0
            while stage.stopped is None:
                before = time.monotonic()
                await asyncio.sleep(0.01)
                late = max(late, time.monotonic() - before)
            assert HANG_SECONDS - 0.1 < time.monotonic() - began < HANG_SECONDS + 5
            assert late < 1  # the loop went on all the while
            assert stage.stopped == "hung"
            trial = stage.trial
            stage.offer([3.0])
            if x == 15:
                await until(lambda: not trial.alive)
            interrupted = {"failed": 1} if x == 15 else {}
            assert stage.found.outcomes == {"agreed": 1, "dropped": 1, **interrupted}
        assert [line["event"] for line in logs if line["event"] == "traffic_stopped"] == ["traffic_stopped"]

    asyncio.run(play())


def test_without_its_alias_it_is_tried_no_more_and_freed(numbers: list[LoadedModel]) -> None:
    """From the next row on; neither its thread nor what waited keeps it in memory."""
    champion = numbers[0]

    async def play() -> None:
        runtime = _Shifted(0.0)
        alive = weakref.ref(runtime)
        with staged(_entry(champion)) as stage:
            stage.show(_entry(champion, replace(numbers[1], runtime=runtime)))
            del runtime
            stage.offer([1.0])
            await stage.counted(1)
            stage.show(_entry(champion))
            stage.offer([2.0])
            assert stage.shadows.of(champion) is None

            def freed() -> bool:
                gc.collect()
                return alive() is None

            await until(freed)

    asyncio.run(play())


def test_an_estimator_is_never_called_twice_at_once(load: Load) -> None:
    """Whoever asks for the shadow's version by its number waits for the shadow's piece of work, and the other way."""
    champion = replace(load("slow"), runtime=_Shifted(0.0))
    manifest = champion.manifest.model_copy(update={"version": 2})
    jealous = _Jealous()
    shadow = replace(load("slow"), manifest=manifest, runtime=jealous, cost=Cost(((1, 1e-6), (1000, 1e-3))))

    async def play() -> None:
        with staged(_entry(champion, shadow, name="slow")) as stage, open_desk(shadow) as desk:
            assert desk.lane.inline
            for _ in range(50):
                stage.offer([1.0])
                assert await desk.values([1.0]) == [1.0]
            await stage.counted(50)
            assert "failed" not in stage.found.outcomes

    asyncio.run(play())
    assert jealous.calls > 60


class _Jealous:
    """A runtime that raises when it is called while it works."""

    name, steady = "jealous", True

    def __init__(self) -> None:
        self.calls = 0
        self._busy = False

    def predict(self, inputs: Any, rows: int) -> RawOutput:
        if self._busy:
            raise RuntimeError("called twice at once")
        self._busy = True
        time.sleep(0.002)  # another thread may go on meanwhile
        self.calls += 1
        self._busy = False
        return RawOutput(values=np.asarray(inputs)[:, 0] * 1.0)


def test_it_takes_a_quarter_of_a_core(numbers: list[LoadedModel]) -> None:
    """However much is offered to it."""
    busy = _Busy()
    shadow = replace(numbers[1], runtime=busy, cost=Cost(((1, _Busy.seconds),)))

    async def play() -> float:
        with staged(_entry(numbers[0], shadow)) as stage:
            began = time.monotonic()
            while time.monotonic() < began + 1.5:
                stage.offer([1.0] * 20)
                await asyncio.sleep(0.01)
            return busy.used / (time.monotonic() - began)

    assert 0.01 < asyncio.run(play()) < 0.3


class _Busy:
    """A runtime that takes five milliseconds of the CPU for a row."""

    name, steady, seconds = "busy", True, 0.005

    def __init__(self) -> None:
        self.used = 0.0

    def predict(self, inputs: Any, rows: int) -> RawOutput:
        began = time.thread_time()
        while time.thread_time() < began + rows * self.seconds:
            pass
        self.used += time.thread_time() - began
        return RawOutput(values=np.asarray(inputs)[:, 0] * 1.0)
