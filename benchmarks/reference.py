"""What all servers are given: one artefact for texts and one for rows, what to send, and what scikit-learn answers."""

import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.environments import PLACE
from benchmarks.processes import SERVER_CORE
from tests.support.server import ROOT, clean_environment

CORPUS = ROOT / "app/training/corpora/sentiment.csv"
SINGLES = 400
BATCH = 1_000
_SECONDS = 120


@dataclass(frozen=True)
class Reference:
    """A model: where it lies, what is sent in turn, and scikit-learn's answers to that.

    An item is a text, or a list of numbers in the order of `fields`.
    """

    models: Path
    artefact: Path
    items: Sequence[Any]
    answers: Sequence[str]
    fields: Sequence[str]

    def in_process(self, items: Sequence[Any], seconds: float) -> Mapping[str, Any]:
        """scikit-learn alone on the servers' core: `answers`, `rate` in rows a second, `pss_bytes`."""
        command = ["taskset", "-c", str(SERVER_CORE), sys.executable, "-m", "benchmarks.inprocess"]
        return _in_process([*command, str(self.artefact), str(seconds)], items, seconds)


def make_references(data: Path | None, say: Callable[[str], None]) -> dict[str, Reference]:
    """The models by task, trained where they do not exist yet: `text` on `data` or the project's own corpus, `row`."""
    file = data or CORPUS
    texts = _texts(file)
    models = PLACE / "models" / hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    # Version 1 of the recipe, TF-IDF and logistic regression, is the model of the first contract.
    recipe = ["sentiment", "--recipe-version", "1", "--version", "1", "--alias", "v1", "--alias", "champion"]
    # Each in a folder of its own: nobody's memory holds the other one.
    _train(models / "text/sentiment/1", [*recipe, *(["--data", str(file)] if data else [])], say)
    _train(models / "row/breast-cancer/1", ["breast-cancer"], say)
    rows = _rows(models / "row/breast-cancer/1")
    return {
        "text": _reference(models / "text", "sentiment", _spread(texts, SINGLES), ("text",)),
        "row": _reference(models / "row", "breast-cancer", [list(row.values()) for row in rows], tuple(rows[0])),
    }


def batch_of(data: Path | None) -> list[str]:
    """A thousand texts of the file, for one request."""
    return _spread(_texts(data or CORPUS), BATCH)


def _reference(models: Path, name: str, items: Sequence[Any], fields: Sequence[str]) -> Reference:
    reference = Reference(models, models / name / "1/model.joblib", items, (), fields)
    return Reference(models, reference.artefact, items, reference.in_process(items, 0)["answers"], fields)


def _in_process(command: Sequence[str], items: Sequence[Any], seconds: float) -> Mapping[str, Any]:
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env=clean_environment(),
        input=json.dumps(items),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_SECONDS + seconds,
    )
    found: Mapping[str, Any] = json.loads(ran.stdout)
    return found


def _train(folder: Path, arguments: Sequence[str], say: Callable[[str], None]) -> None:
    if (folder / "manifest.json").exists():
        return
    say(f"training {arguments[0]}")
    environment = clean_environment(MODELS_DIR=str(folder.parent.parent))
    subprocess.run(
        [sys.executable, "-m", "app", "train", *arguments],
        cwd=ROOT,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=_SECONDS,
    )


def _texts(file: Path) -> list[str]:
    with file.open(newline="") as lines:
        texts = list(dict.fromkeys(line["text"] for line in csv.DictReader(lines) if line["text"].strip()))
    if len(texts) < BATCH:
        raise click.UsageError(f"{file.name} has {len(texts)} different texts; {BATCH} are needed")
    return texts


def _rows(folder: Path) -> list[dict[str, float]]:
    golden = json.loads((folder / "manifest.json").read_text())["golden"]["rows"]
    return [row["inputs"] for row in golden]


def _spread(texts: Sequence[str], count: int) -> list[str]:
    return [texts[i * len(texts) // count] for i in range(min(count, len(texts)))]
