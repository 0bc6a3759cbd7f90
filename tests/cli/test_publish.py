"""`models publish`: files, folders and MLflow's format become versions, whole or not at all, whatever is in them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from app.cli.models import models
from app.config import ModelSettings, StorageSettings
from app.errors import InvalidSettings, OperatorError
from app.registry.errands import silent
from app.registry.loader import load_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from app.release.changes import PUBLISH, Releases
from app.release.notes import FOLDER
from app.storage import audit, queries
from app.storage.database import Database
from app.storage.migrations import upgrade
from app.training.orders import Order
from app.training.publication import carry_out
from tests.support.demo import MODULES
from tests.support.estimators import Deadly, Hanging, Leaving, Oversized
from tests.support.server import ROOT, clean_environment
from tests.support.signing import make_key

FLOWERS = load_iris(as_frame=True)
SPECIES = FLOWERS.target_names[FLOWERS.target]
_KILL_SECONDS = 60


def _places(tmp_path: Path) -> dict[str, str]:
    return {"MODELS_DIR": str(tmp_path / "models"), "DATABASE_URL": f"sqlite:///{tmp_path}/presage.db"}


def _run(tmp_path: Path, *arguments: object, **settings: str) -> Result:
    """The command, in this process but for what it starts."""
    environment = {**_places(tmp_path), **settings}
    return CliRunner().invoke(models, ["publish", *map(str, arguments)], env=environment)


def _published(tmp_path: Path, *arguments: object, **settings: str) -> str:
    result = _run(tmp_path, *arguments, **settings)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def _refused(tmp_path: Path, *arguments: object, **settings: str) -> str:
    """The one line with which it ends."""
    result = _run(tmp_path, *arguments, **settings)
    assert isinstance(result.exception, OperatorError), (result.output, result.exception)
    assert "\n" not in str(result.exception)
    return str(result.exception)


def _publish_here(tmp_path: Path, file: Path, data: Path) -> None:
    """The same without a process for it, for what only has to be there."""
    models = ModelSettings(models_dir=tmp_path / "models")
    order = Order(source=file, kind="estimator", name="iris", data=data, models=models, cpu_seconds=60, by="ann")
    carry_out(order, silent)


def _source(tmp_path: Path) -> DirectorySource:
    return DirectorySource(tmp_path / "models")


def _answers(tmp_path: Path, name: str, rows: list[dict[str, Any]], version: int = 1) -> list[Any]:
    model = load_version(_source(tmp_path), name, version, Trust())
    valid: Any = model.pipeline.validate(rows)
    outputs = model.runtime.predict(model.pipeline.preprocess(valid), len(rows))
    return [prediction.value for prediction in model.pipeline.postprocess(outputs)]


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """The iris data in a file, with the species."""
    path = tmp_path / "flowers.csv"
    FLOWERS.data.assign(species=SPECIES).to_csv(path, index=False)
    return path


@pytest.fixture
def iris(tmp_path: Path) -> Path:
    """A classifier of flowers in a file, fitted on a DataFrame."""
    path = tmp_path / "iris.joblib"
    joblib.dump(LogisticRegression(max_iter=1000).fit(FLOWERS.data, SPECIES), path)
    return path


def test_a_file_becomes_the_first_version(tmp_path: Path, iris: Path, flowers: Path) -> None:
    """With figures about the target; steps are said, and in the end how to try it; it is the champion."""
    said = _published(tmp_path, iris, "--name", "iris", "--data", flowers, "--target", "species")
    steps = [
        "opening iris.joblib",
        "finding out what it takes",
        "proving it",
        "iris 1: published",
        "it is the champion",
    ]
    assert re.search(".*".join(steps), said, re.DOTALL), said
    assert "/v2/predict/iris?version=1" in said
    manifest = _source(tmp_path).manifest("iris", 1)
    assert (manifest.task, manifest.outputs.target, manifest.training.rows) == ("classification", "species", 150)
    (figures,) = manifest.training.evaluations
    assert figures.metrics["balanced_accuracy"] > 0.95
    assert "not known" in figures.measured
    row = json.loads(re.search(r"-d '(.*)'", said)[1])["inputs"]  # type: ignore[index]
    assert _answers(tmp_path, "iris", [row]) == ["setosa"]


def test_the_next_version_waits_until_it_is_promoted(tmp_path: Path, iris: Path, flowers: Path) -> None:
    """Aliases move only when they are named, and the champion's predecessor is kept for a rollback."""
    arguments = (iris, "--name", "iris", "--data", flowers)
    _publish_here(tmp_path, iris, flowers)
    said = _published(tmp_path, *arguments, "--alias", "canary")
    assert said.endswith("promote it:  python -m app models promote iris 2\n")
    assert _source(tmp_path).aliases("iris") == {"champion": 1, "canary": 2}
    _published(tmp_path, *arguments, "--version", 7, "--alias", "champion")
    assert _source(tmp_path).aliases("iris") == {"champion": 7, "canary": 2, "previous": 1}
    assert "iris 7 exists already" in _refused(tmp_path, *arguments, "--version", 7)


@pytest.mark.parametrize(
    ("estimator", "seconds", "said"),
    [
        (Deadly(), 60, "the process ended with SIGSEGV"),
        (Leaving(), 60, "the process ended with the exit code"),
        (Hanging(), 4, r"opening toy.joblib: not done within 4 s \(PUBLISH_SECONDS\)"),
        (Oversized(), 60, r"it takes more memory than it may \(MODELS_MAX_BYTES\)"),
    ],
    ids=["crashes", "exits", "hangs", "takes-all-memory"],
)
def test_whatever_a_file_does_is_one_line(tmp_path: Path, estimator: Any, seconds: int, said: str) -> None:
    """It is done in a process with limits; nothing is left of it."""
    joblib.dump(estimator, tmp_path / "toy.joblib")
    pd.DataFrame({"x": range(20)}).to_csv(tmp_path / "rows.csv", index=False)
    limits = {"MODEL_MODULES": MODULES, "PUBLISH_SECONDS": str(seconds), "MODELS_MAX_BYTES": str(512 << 20)}
    arguments = (tmp_path / "toy.joblib", "--name", "toy", "--data", tmp_path / "rows.csv")
    assert re.search(said, _refused(tmp_path, *arguments, **limits))
    assert not (tmp_path / "models").exists()


def test_a_program_in_a_file_does_not_run(tmp_path: Path, flowers: Path) -> None:
    """A pickle that names what is not allowed is refused with advice."""
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    said = _refused(tmp_path, tmp_path / "evil.pkl", "--name", "toy", "--data", flowers)
    assert "if you trust it, set MODEL_MODULES=os" in said.replace("posix", "os")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("rows.csv", "should be a file of a fitted estimator"),
        ("nothing", "there is no file or folder"),
        (".", "has neither a manifest.json nor an MLmodel"),
    ],
)
def test_what_is_no_source(tmp_path: Path, source: str, said: str) -> None:
    """One line says why, before anything is started."""
    (tmp_path / "rows.csv").touch()
    assert said in _refused(tmp_path, tmp_path / source, "--name", "iris")


def test_a_dry_run_says_what_could_be(tmp_path: Path, iris: Path, flowers: Path) -> None:
    """And leaves nothing."""
    said = _published(tmp_path, iris, "--name", "iris", "--data", flowers, "--dry-run")
    assert said.endswith("iris 1: could be published; nothing was written\n")
    assert not (tmp_path / "models").exists()


def test_options_that_make_no_sense_together(tmp_path: Path, iris: Path) -> None:
    """Said before anything is done; and MLflow's names need MLflow's address."""
    for arguments in (("--target", "x"), ("--follow", "5")):
        assert _run(tmp_path, iris, "--name", "iris", *arguments).exit_code == 2
    result = _run(tmp_path, "models:/iris@champion", "--name", "iris")
    assert isinstance(result.exception, InvalidSettings)
    assert "MLFLOW_TRACKING_URI" in str(result.exception)


def _command(iris: Path, flowers: Path) -> list[str]:
    return [sys.executable, "-m", "app", "models", "publish", str(iris), "--name", "iris", "--data", str(flowers)]


def test_two_at_the_same_time_get_two_numbers(tmp_path: Path, iris: Path, flowers: Path) -> None:
    """One of them is the champion, and both are on record."""
    environment = clean_environment(**_places(tmp_path))
    url = SecretStr(environment["DATABASE_URL"])
    upgrade(StorageSettings(database_url=url))
    both = [subprocess.Popen(_command(iris, flowers), cwd=ROOT, env=environment) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    source = _source(tmp_path)
    assert source.versions("iris") == [1, 2]
    assert source.aliases("iris")["champion"] in {1, 2}
    assert _hidden(tmp_path) == []
    with Database(StorageSettings(database_url=url)) as database, database.reading() as connection:
        entries = audit.page(queries.on(connection), subject="iris", actions=(PUBLISH,), size=9).entries
    assert {(entry.after or {})["version"] for entry in entries} == {1, 2}
    assert all(entry.principal.startswith("cli:") for entry in entries)


def _hidden(tmp_path: Path) -> list[Path]:
    """What lies beside the versions and should not; a change that waits for the database is a file, too."""
    hidden = [path for path in (tmp_path / "models/iris").iterdir() if path.name.startswith(".")]
    return [path for path in hidden if path.name != FOLDER or any(path.iterdir())]


def test_without_a_database_it_is_on_record_later(tmp_path: Path, iris: Path, flowers: Path) -> None:
    """By the next command, or a service, that finds it."""
    assert "goes on record once" in _published(tmp_path, iris, "--name", "iris", "--data", flowers)
    storage = StorageSettings(database_url=SecretStr(_places(tmp_path)["DATABASE_URL"]))
    assert _hidden(tmp_path) != []
    upgrade(storage)
    with Database(storage) as database:
        found = Releases(ModelSettings(models_dir=tmp_path / "models"), database).history("iris", 9)
    assert [entry.action for entry in found] == [PUBLISH]
    assert _hidden(tmp_path) == []


def test_what_is_published_is_signed_by_whoever_publishes(tmp_path: Path, iris: Path, flowers: Path) -> None:
    """Not by the process that opens the file: that does not have the key."""
    make_key(tmp_path / "keys")
    _published(tmp_path, iris, "--name", "iris", "--data", flowers, MODEL_SIGNING_KEY=f"{tmp_path}/keys/alice.key")
    trust = Trust(keys_dir=tmp_path / "keys", signatures="require")
    assert load_version(_source(tmp_path), "iris", 1, trust).version == 1


@pytest.mark.parametrize(
    "moment", ["iris/.1.*", "iris/.1.*/iris/1/model.joblib", "iris/.1.*/iris/1/manifest.json", "iris/1"]
)
def test_killed_at_any_moment_it_leaves_a_whole_version_or_none(
    tmp_path: Path, iris: Path, flowers: Path, moment: str
) -> None:
    """As soon as that path is there, the command is killed; what it had started ends with it."""
    environment = clean_environment(**_places(tmp_path))
    process = subprocess.Popen(_command(iris, flowers), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    _until(lambda: any((tmp_path / "models").glob(moment)))
    child = _children(process.pid)
    process.kill()
    process.wait()
    _until(lambda: not any(map(_alive, child)))
    source = _source(tmp_path)
    for version in source.versions("iris"):
        load_version(source, "iris", version, Trust())
    assert moment != "iris/1" or source.versions("iris") == [1]
    _publish_here(tmp_path, iris, flowers)
    assert len(source.versions("iris")) == (2 if moment == "iris/1" else 1)


def _until(condition: Callable[[], bool], seconds: float = _KILL_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    """Whether it runs; one that has ended may wait to be reaped by whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_hangs_does_not_outlive_the_command(tmp_path: Path, flowers: Path) -> None:
    """The process that opens the file ends with the command, however that ends."""
    joblib.dump(Hanging(), tmp_path / "toy.joblib")
    environment = clean_environment(MODELS_DIR=str(tmp_path / "models"), MODEL_MODULES=MODULES)
    command = _command(tmp_path / "toy.joblib", flowers)
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"opening")
    (child,) = _children(process.pid)
    process.kill()
    process.communicate()
    _until(lambda: not _alive(child), seconds=10)


def test_on_ctrl_c_it_takes_away_what_it_was_making(tmp_path: Path, iris: Path, flowers: Path) -> None:
    """Also what the process in which it works has begun."""
    environment = clean_environment(**_places(tmp_path))
    process = subprocess.Popen(
        _command(iris, flowers), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _until(lambda: any((tmp_path / "models").glob("iris/.1.*/iris/1/model.joblib")))
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(30) != 0
    assert not any((tmp_path / "models").iterdir())


def test_the_example_in_the_docs_works(tmp_path: Path) -> None:
    """Its program makes the two files that its command publishes."""
    text = (ROOT / "docs/publishing.md").read_text().partition("## An estimator in a file")[2]
    program, command, *_ = re.findall(r"^```(?:python|sh)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    environment = clean_environment(PYTHONPATH=str(ROOT), DATABASE_URL=_places(tmp_path)["DATABASE_URL"])
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, timeout=60)
    line = command.replace("python", sys.executable)
    subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment, check=True, timeout=60, stdout=subprocess.DEVNULL
    )
    assert _source(tmp_path).manifest("churn", 1).training.evaluations[0].metrics["accuracy"] == 1.0
