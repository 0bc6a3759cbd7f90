"""A real MLflow server in an environment of its own, and a client process that logs and promotes models there."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from benchmarks.environments import python_of
from tests.support import calls
from tests.support.server import clean_environment, free_port

_READY_SECONDS = 90
# Jobs are other processes of the server, which evaluate language models.
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

# Logs a classifier of flowers with a penalty of its own, registers it, and has an alias stand for it.
_CLIENT = """
import sys

import mlflow
from mlflow.models import infer_signature
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

name, alias, strength = sys.argv[1], sys.argv[2], float(sys.argv[3])
flowers = load_iris(as_frame=True)
species = flowers.target_names[flowers.target]
model = LogisticRegression(C=strength, max_iter=1000).fit(flowers.data, species)
with mlflow.start_run():
    logged = mlflow.sklearn.log_model(
        model,
        name="model",
        signature=infer_signature(flowers.data, species),
        input_example=flowers.data.iloc[::10],
        registered_model_name=name,
        pip_requirements=[],
    )
version = logged.registered_model_version
mlflow.MlflowClient().set_registered_model_alias(name, alias, version)
"""


@dataclass
class MlflowServer:
    """Where it listens, and how a client of its own environment is run."""

    python: Path
    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def promote(self, name: str, alias: str, strength: float) -> None:
        """Log and register a new version of a model, and have the alias stand for it."""
        command = [str(self.python), "-c", _CLIENT, name, alias, str(strength)]
        environment = clean_environment(MLFLOW_TRACKING_URI=self.url, **_QUIET)
        subprocess.run(command, cwd=self.folder, env=environment, check=True, capture_output=True, timeout=90)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [str(self.python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "./artifacts"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--workers", "1"],
                cwd=self.folder,
                env=clean_environment(**_QUIET),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _READY_SECONDS
        while not self._answers():
            said = (self.folder / "log").read_text()
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)

    def stop(self) -> None:
        """End it, with its children: they are all of one group."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            return calls.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False


@contextmanager
def running_mlflow(folder: Path) -> Iterator[MlflowServer]:
    """A server with SQLite and a folder of artefacts below `folder`; installed first where it is not."""
    server = MlflowServer(python_of("mlflow", install=True, say=print), free_port(), folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
