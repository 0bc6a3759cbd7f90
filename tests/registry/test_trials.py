"""A trial costs nothing but itself, whatever the version does; and there is one of each version."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.dummy import DummyRegressor

from app.config import ModelSettings
from app.errors import VersionRefused
from app.manifest import Manifest, Outputs
from app.registry.sources import DirectorySource
from app.registry.trials import Trials, Verdict
from app.registry.trust import trust_of
from app.runtimes.politeness import politely
from tests.support.demo import MODULES
from tests.support.estimators import Deadly, Hanging, Leaving, Looping, Mannered, Oversized, Scheduled, Spawning
from tests.support.versions import one_golden, write_classifier, write_version

NUMBER: dict[str, Any] = {"task": "regression", "outputs": Outputs(target="number"), "golden": one_golden(0.0)}
BUDGET = 512 << 20
_numbers = count(2)


def _settings(root: Path, **changes: Any) -> ModelSettings:
    """Trials that are short, and a budget that nothing good needs."""
    few = {"models_max_bytes": BUDGET, "model_trial_seconds": 1, "model_trials": "auto", "model_modules": (MODULES,)}
    return ModelSettings(**{"models_dir": root, "model_trials_dir": root.parent / "trials", **few, **changes})


def _trials(settings: ModelSettings) -> Trials:
    return Trials(settings, trust_of(settings, production=False))


@pytest.fixture
def trials(tmp_path: Path) -> Iterator[Trials]:
    """With a folder of their own."""
    with _trials(_settings(tmp_path / "models")) as trials:
        yield trials


@pytest.fixture(scope="module")
def lasting_trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    """One process for several tests."""
    with _trials(_settings(tmp_path_factory.mktemp("lasting") / "models")) as trials:
        yield trials


def _verdict(trials: Trials, root: Path, manifest: Manifest) -> Verdict:
    return trials.verdict(DirectorySource(root), manifest)


def test_a_good_version_comes_with_all_that_loading_it_would_have_to_find_out(tmp_path: Path, trials: Trials) -> None:
    """Which forms answer, what a call costs, and how much memory it takes."""
    manifest = write_classifier(tmp_path / "models")
    verdict = _verdict(trials, tmp_path / "models", manifest)
    assert verdict.refusal is None
    assert verdict.plan
    assert {form.form for form in verdict.forms} >= {"folded linear", "scikit-learn"}
    assert verdict.cost[0][0] == 1
    assert manifest.artefact.size <= verdict.memory_bytes < BUDGET


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (Deadly(), "trial_crashed"),
        (Leaving(), "trial_crashed"),
        (Looping(), "trial_timeout"),
        (Hanging(), "trial_timeout"),
        (Spawning(), "trial_timeout"),
        (Oversized(), "trial_memory"),
    ],
    ids=["crashes", "exits", "loops", "sleeps", "leaves-a-child", "wants-ten-gigabytes"],
)
def test_whatever_loading_it_does_is_a_refusal_and_the_next_version_is_tried(
    tmp_path: Path, lasting_trials: Trials, estimator: Any, reason: str
) -> None:
    """By the same process, which has come to no harm; and nothing of the version is left running."""
    root = tmp_path / "models"
    verdict = _verdict(lasting_trials, root, write_version(root, estimator, **NUMBER))
    assert verdict.refusal is not None
    assert verdict.refusal.reason == reason
    good = write_classifier(root, version=next(_numbers))  # one that has not been tried
    assert _verdict(lasting_trials, root, good).refusal is None
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, check=True, text=True).stdout
    assert "sleep 598" not in listed, "what the version has started goes on"


def test_a_trial_takes_only_what_time_of_the_cpus_is_left(tmp_path: Path, lasting_trials: Trials) -> None:
    """The version sees how it is scheduled, and its golden row says that it should be so."""
    idle = {**NUMBER, "golden": one_golden(float(os.SCHED_IDLE))}
    manifest = write_version(tmp_path / "models", Scheduled(), **idle)
    assert _verdict(lasting_trials, tmp_path / "models", manifest).refusal is None


@pytest.mark.parametrize("callers", [True, False])
def test_a_trial_rests_for_those_who_are_served_beside_it(
    tmp_path: Path, lasting_trials: Trials, *, callers: bool
) -> None:
    """Not at a start, when nobody is; the version sees it, and its golden row says how it should be."""
    mannered = {**NUMBER, "golden": one_golden(float(callers))}
    manifest = write_version(tmp_path / "models", Mannered(), **mannered)
    with politely() if callers else nullcontext():
        assert _verdict(lasting_trials, tmp_path / "models", manifest).refusal is None


def test_a_decompression_bomb_is_refused(tmp_path: Path, trials: Trials) -> None:
    """A small file that becomes more than all versions together may take."""
    estimator = DummyRegressor(strategy="constant", constant=0.0).fit([[0.0]], [0.0])
    estimator.ballast_ = np.zeros((2 * BUDGET) // 8)
    root = tmp_path / "models"
    manifest = write_version(root, estimator, compress=3, **NUMBER)
    assert manifest.artefact.size < 8 << 20
    verdict = _verdict(trials, root, manifest)
    assert verdict.refusal is not None
    assert verdict.refusal.reason == "trial_memory"


def test_what_has_been_tried_is_not_tried_again_by_anybody(tmp_path: Path, trials: Trials) -> None:
    """Another process finds what the first has found out; it starts nothing for that."""
    root = tmp_path / "models"
    manifest = write_classifier(root)
    verdict = _verdict(trials, root, manifest)
    (root / "toy/1/model.joblib").unlink()  # a second trial would fail
    with _trials(_settings(root)) as others:
        assert _verdict(others, root, manifest) == verdict
        assert others._process is None


def test_a_copy_that_is_damaged_says_nothing_of_another_copy(tmp_path: Path, trials: Trials) -> None:
    """Two machines, or folders, may have the same manifest, and one of them a file that is cut off."""
    damaged, whole = tmp_path / "models", tmp_path / "others"
    manifest = write_classifier(damaged)
    assert write_classifier(whole) == manifest
    (damaged / "toy/1/model.joblib").write_bytes(b"cut off")
    refusal = _verdict(trials, damaged, manifest).refusal
    assert refusal is not None
    assert refusal.reason in {"digest_mismatch", "artefact_unreadable"}
    assert _verdict(trials, whole, manifest).refusal is None


def test_a_refusal_that_may_have_come_of_a_busy_machine_is_thought_over(tmp_path: Path, trials: Trials) -> None:
    """After ten minutes; one that can only be the version's fault stands."""
    root = tmp_path / "models"
    manifests = {
        "trial_crashed": write_version(root, Deadly(), **NUMBER),
        "golden_mismatch": write_classifier(root, version=2, golden=one_golden("big")),
    }
    for reason, manifest in manifests.items():
        verdict = _verdict(trials, root, manifest)
        assert verdict.refusal is not None
        assert verdict.refusal.reason == reason
        (kept,) = [path for path in (tmp_path / "trials").glob("*.json") if reason in path.read_text()]
        assert trials._read(kept.stem) == verdict
        os.utime(kept, (time.time() - 700, time.time() - 700))
        assert (trials._read(kept.stem) is None) == (reason == "trial_crashed")


def test_without_a_folder_to_keep_them_trials_are_made_all_the_same(tmp_path: Path) -> None:
    """A disk that cannot be written costs only that they are not remembered."""
    root = tmp_path / "models"
    manifest = write_classifier(root)
    (tmp_path / "file").write_text("")
    with _trials(_settings(root, model_trials_dir=tmp_path / "file" / "trials")) as trials:
        assert _verdict(trials, root, manifest).refusal is None


def test_a_version_sees_no_settings_and_no_secrets(tmp_path: Path, trials: Trials, monkeypatch: Any) -> None:
    """The process has an environment of its own."""
    monkeypatch.setenv("JWT_SECRET", "0123456789abcdef0123456789abcdef")
    _verdict(trials, tmp_path / "models", write_classifier(tmp_path / "models"))
    assert trials._process is not None
    environment = Path(f"/proc/{trials._process.pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"JWT_SECRET" not in environment
    assert os.getpriority(os.PRIO_PROCESS, trials._process.pid) == 10


def test_closing_ends_a_trial_in_its_middle(tmp_path: Path) -> None:
    """Whoever stops the service does not wait for a version that hangs."""
    root = tmp_path / "models"
    write_version(root, Hanging(), **NUMBER)
    trials = _trials(_settings(root, model_trial_seconds=600))
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            _verdict(trials, root, DirectorySource(root).manifest("toy", 1))
        except VersionRefused as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    deadline = time.monotonic() + 30
    while trials._process is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process = trials._process
    assert process is not None
    trials.close()
    thread.join(30)
    assert raised
    assert process.poll() is not None
