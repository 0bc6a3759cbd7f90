"""Examples in the docs are true: every `console` block is run against a real server with the demo models.

`UPDATE_DOCS=1 pytest tests/test_docs.py` writes what the commands answer into the documents.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from app.registry.aliases import write_aliases
from tests.support import calls
from tests.support.server import ROOT, TRIED, Server, clean_environment, running_server
from tests.support.tokens import SECRET, token

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CORPUS = ROOT / "app/training/corpora/sentiment.csv"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MASKS = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"), "<uuid>"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<request id>"),
    (re.compile(r'("(?:model|total)_ms": ?)[0-9.]+'), r"\1<time>"),
    (re.compile(r'("(?:used|remaining|reset_seconds)": ?)\d+'), r"\1<count>"),
    (re.compile(r"^ratelimit: .*$", re.MULTILINE), "ratelimit: <left>"),
    (re.compile(r'("pending_bytes": ?)\d+'), r"\1<bytes>"),
    (re.compile(r"^date: .*$", re.MULTILINE), "date: <date>"),
    (re.compile(r"\b20\d\d-\d\d-\d\d\b"), "<date>"),
    (re.compile(r"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "<time>"),
    (re.compile(r"[\d.]+( ms for \d+ \(champion )[\d.]+"), r"<time>\1<time>"),
    (re.compile(r"after \d+\.\d+ s"), "after <time>"),
    (re.compile(r"[\d,]+ of [\d,]+ labels equal"), "<count> labels equal"),
    (re.compile(r"\bcli:\w+"), "cli:<user>"),
    (re.compile(r"(\d\.\d{4})\d+(e-\d+)?"), r"\1"),
    (re.compile(r"\b[\d.]+ [KM]iB"), "<size>"),
    (re.compile(r" +"), " "),
    (re.compile(r"\r"), ""),
)


@pytest.fixture(scope="module")
def demo_copy(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo models, for commands that change what their names stand for."""
    copied: Path = shutil.copytree(demo_models, tmp_path_factory.mktemp("docs") / "models")
    return copied


@pytest.fixture(scope="module")
def demo_server(demo_copy: Path) -> Iterator[Server]:
    """A server with the models that `make run` would train, which commands may change, and some traffic on record."""
    log = demo_copy.parent / "log"
    environment = {"AUTH_MODE": "jwt", "JWT_SECRET": SECRET, "RATE_LIMIT": "60000/minute", **TRIED}
    with running_server(demo_copy, log, environment, arguments=["--migrate"]) as started, started.client() as client:
        client.headers["authorization"] = f"Bearer {token(sub='visitor').decode()}"
        with CORPUS.open() as file:
            texts = [row["text"] for row in islice(csv.DictReader(file), 0, 3_600, 12)]
        answer = client.post("/v2/batch/sentiment", json={"inputs": [{"text": text} for text in texts]})
        last = answer.json()["results"][-1]["id"]
        client.get(f"/v2/predictions/{last}").raise_for_status()  # which waits until the database has it
        yield started


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_every_command_answers_what_the_document_says(document: Path, demo_server: Server, demo_copy: Path) -> None:
    """But for ids, times and last digits; each document begins with the models as they were made."""
    _point_back(demo_copy, demo_server)
    text = document.read_text()

    def run_block(match: re.Match[str]) -> str:
        commands = [line[2:] for line in match[1].splitlines() if line.startswith("$ ")]
        outputs = (f"$ {command}\n{_run(command, demo_server, demo_copy)}" for command in commands)
        return "```console\n" + "".join(outputs) + "```"

    answered = _BLOCK.sub(run_block, text)
    if os.environ.get("UPDATE_DOCS"):
        document.write_text(answered)
    assert _masked(answered) == _masked(text)


def test_the_example_of_ones_own_model_works(tmp_path: Path) -> None:
    """The README's ten lines publish a model from a CSV file with a gap in it."""
    (program,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    rows = [f"{i % 7},{i * 1.5 if i % 5 else ''},{'yes' if i % 7 > 3 else 'no'}" for i in range(60)]
    (tmp_path / "churn.csv").write_text("\n".join(["calls,spend,churned", *rows]) + "\n")
    environment = clean_environment(PYTHONPATH=str(ROOT))
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, timeout=60)
    settings = {"DEFAULT_MODEL": "churn"}
    with running_server(tmp_path / "models", tmp_path / "log", settings) as server, server.client() as client:
        answer = client.post("/v2/predict/churn", json={"inputs": {"calls": 5, "spend": None}})
        assert answer.json()["prediction"] == "yes", answer.text


def test_every_link_in_the_docs_leads_somewhere() -> None:
    """Relative links name files that exist."""
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "models/README.md"]
    links = [(d, link) for d in documents for link in re.findall(r"\]\(([^)#\s]+)\)", d.read_text())]
    broken = [(d.name, link) for d, link in links if "://" not in link and not (d.parent / link).exists()]
    assert len(links) > 10
    assert not broken


def _point_back(models: Path, server: Server) -> None:
    (models / "sentiment/traffic.json").unlink(missing_ok=True)
    write_aliases(models / "sentiment/aliases.json", {"champion": 2, "v1": 1})
    deadline = time.monotonic() + 30
    headers = {"authorization": f"Bearer {token(scope='read').decode()}"}
    while True:
        entry = calls.get(f"{server.url}/v2/catalog/sentiment", headers=headers, timeout=10).json()
        if entry["aliases"] == {"champion": 2, "v1": 1} and not entry.get("pending"):
            return
        assert time.monotonic() < deadline, entry
        time.sleep(0.05)


def _run(command: str, server: Server, models: Path) -> str:
    """What the command prints, run from the root of the project as a reader would."""
    line = command.replace("localhost:8000", f"127.0.0.1:{server.port}").replace(
        "python -m app", f"{sys.executable} -m app"
    )
    environment = clean_environment(
        MODELS_DIR=str(models),
        DATABASE_URL=f"sqlite:///{server.log.parent}/presage.db",
        JOURNAL_DIR=f"{server.log.parent}/journal",
        MODEL_TRIALS_DIR=f"{server.log.parent}/trials",
        TOKEN=token(sub="me").decode(),
        ADMIN=token(sub="ann", scope="admin").decode(),
    )
    ended = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    printed = ended.stdout.replace("\r", "")
    return printed if printed.endswith("\n") else printed + "\n"


def _masked(text: str) -> str:
    for pattern, replacement in _MASKS:
        text = pattern.sub(replacement, text)
    return text
