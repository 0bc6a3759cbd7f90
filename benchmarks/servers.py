"""What is measured, and how each server is started, asked and read.

Each peer is set up as its documentation recommends for one core: one worker, batching on where it is recommended, no
access log. Where its documentation leaves a number to trial, that number was tried, and the fastest is here.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version as installed_version
from typing import Any

from app import __version__
from benchmarks.environments import PLACE, version_of
from benchmarks.system import Place, System, Task
from tests.support.server import ROOT, clean_environment, free_port
from tests.support.tokens import SECRET, token

PEERS = ROOT / "benchmarks/peers"
PRESAGE = "presage"


def presage(task: Task, fields: Sequence[str], *, name: str = PRESAGE, **settings: str) -> System:
    """This service, with everything on."""

    def variables(place: Place) -> Mapping[str, str]:
        folder = place.folder
        return clean_environment(
            PYTHONPATH=str(ROOT),
            PORT=str(place.port),
            MODELS_DIR=str(place.models),
            DEFAULT_MODEL="sentiment" if task == "text" else "breast-cancer",
            AUTH_MODE="jwt",
            JWT_SECRET=SECRET,
            RATE_LIMIT="1000000000/minute",
            LOG_POLICY="require",
            LOG_FORMAT="json",
            METRICS="on",
            CACHE="off",
            DATABASE_URL=f"sqlite:///{folder}/presage.db",
            JOURNAL_DIR=f"{folder}/journal",
            JWT_KEYS_DIR=f"{folder}/keys",
            **settings,
        )

    text = task == "text"
    return System(
        name=name,
        task=task,
        path="/v1/predict" if text else "/v2/predict/breast-cancer",
        body=_text if text else lambda row: {"inputs": dict(zip(fields, row, strict=True))},
        answer=lambda answer: answer["sentiment" if text else "prediction"],
        command=lambda place: [str(place.python), "-m", "app", "serve", "--migrate"],
        variables=variables,
        version=f"Presage {__version__}, FastAPI {installed_version('fastapi')}",
        settings="`python -m app serve`, everything on: a JWT for each request, RATE_LIMIT (never reached), "
        "LOG_POLICY=require with SQLite, metrics, validation; CACHE=off",
        headers={"Authorization": f"Bearer {token(exp=4_000_000_000).decode()}"},
    )


def mosec(task: Task) -> System:
    """mosec, with dynamic batching."""
    text = task == "text"
    return System(
        name="mosec",
        task=task,
        path="/predict",
        body=_text if text else lambda row: {"features": row},
        answer=lambda answer: answer["sentiment" if text else "diagnosis"],
        command=lambda place: [str(place.python), str(PEERS / "mosec_server.py")],
        variables=lambda place: _variables(
            place, TASK=task, MOSEC_PORT=str(place.port), MOSEC_ADDRESS="127.0.0.1", MOSEC_LOG_LEVEL="error"
        ),
        version=f"mosec {version_of('mosec', 'mosec')}",
        settings="one worker, max_batch_size=64 (as many as there are connections; 16 to 128 tried), "
        "max_wait_time=1 ms (1 to 10 tried); for rows max_batch_size=1; JSON; log level error",
        environment="mosec",
    )


def bentoml() -> System:
    """BentoML, with adaptive batching."""
    return System(
        name="bentoml",
        task="text",
        path="/predict",
        body=lambda text: {"texts": [text]},
        answer=lambda answer: answer[0],
        command=_bentoml_command,
        variables=lambda place: _variables(
            place, BENTOML_DO_NOT_TRACK="True", BENTOML_HOME=str(place.folder / "bentoml")
        ),
        version=f"BentoML {version_of('bentoml', 'bentoml')}",
        settings="workers=1, batchable=True, max_batch_size=64, max_latency_ms=1000 (32 to 100 and 100 to 60000 ms "
        "tried; without batching it is half as fast); access log off; uvloop and httptools added",
        environment="bentoml",
    )


def _bentoml_command(place: Place) -> list[str]:
    command = [str(place.python.parent / "bentoml"), "serve", "bentoml_service:Sentiment"]
    return [*command, "--working-dir", str(PEERS), "--host", "127.0.0.1", "--port", str(place.port)]


def litserve() -> System:
    """LitServe, with batching."""
    return System(
        name="litserve",
        task="text",
        path="/predict",
        body=_text,
        answer=_sentiment,
        command=lambda place: [str(place.python), str(PEERS / "litserve_server.py")],
        variables=lambda place: _variables(place, PORT=str(place.port)),
        version=f"LitServe {version_of('litserve', 'litserve')}",
        settings="workers_per_device=1, num_api_servers=1, max_batch_size=64, batch_timeout=5 ms (16 to 64 and 0 to "
        "30 ms tried; fast_queue makes no difference); log level warning",
        environment="litserve",
    )


def mlserver(task: Task) -> System:
    """MLServer with its runtime for scikit-learn and adaptive batching."""
    datatype, shape = ("BYTES", 1) if task == "text" else ("FP64", 30)

    def body(item: Any) -> Any:
        data = [item] if task == "text" else item
        return {"inputs": [{"name": "input", "shape": [1, shape], "datatype": datatype, "data": data}]}

    return System(
        name="mlserver",
        task=task,
        path="/v2/models/model/infer",
        body=body,
        answer=lambda answer: answer["outputs"][0]["data"][0],
        command=lambda place: [str(place.python.parent / "mlserver"), "start", str(PEERS / f"mlserver_{task}")],
        variables=lambda place: _variables(
            place,
            MLSERVER_HTTP_PORT=str(place.port),
            MLSERVER_GRPC_PORT=str(free_port()),
            MLSERVER_METRICS_PORT=str(free_port()),
            MLSERVER_MODEL_URI=str(place.artefact),
        ),
        version=f"MLServer {version_of('mlserver', 'mlserver')}",
        settings="SKLearnModel, V2 protocol, parallel_workers=0 (with 1, its default, it is a tenth slower here), "
        "max_batch_size=64, max_batch_time=5 ms (32 to 64 and 1 to 20 ms tried), none for rows; debug off; "
        "httptools added; uvloop 0.21, with newer ones its workers do not start",
        environment="mlserver",
    )


def mlflow() -> System:
    """MLflow's scoring server."""
    return System(
        name="mlflow",
        task="text",
        path="/invocations",
        body=lambda text: {"inputs": [text]},
        answer=lambda answer: answer["predictions"][0],
        command=_mlflow_command,
        variables=lambda place: _variables(place, UVICORN_LOG_LEVEL="warning", MLFLOW_DISABLE_TELEMETRY="true"),
        version=f"MLflow {version_of('mlflow', 'mlflow')}",
        settings="`mlflow models serve --env-manager local --workers 1` of the pipeline saved with mlflow.sklearn; "
        "it has no batching; access log off; uvloop and httptools added; 3.18.0 cannot be installed, since the "
        "mlflow-skinny of that version, which it requires, is not to be had",
        environment="mlflow",
    )


def _mlflow_command(place: Place) -> list[str]:
    saved = PLACE / "mlflow-models" / place.models.name
    if not (saved / "MLmodel").exists():
        save = [str(place.python), str(PEERS / "mlflow_save.py"), str(place.artefact), str(saved)]
        subprocess.run(save, check=True, capture_output=True, timeout=120, env=_variables(place))
    command = [str(place.python.parent / "mlflow"), "models", "serve", "-m", str(saved), "-h", "127.0.0.1"]
    return [*command, "-p", str(place.port), "--env-manager", "local", "--workers", "1"]


def plain() -> System:
    """The code of a weekend tutorial."""
    return System(
        name="plain",
        task="text",
        path="/predict",
        body=_text,
        answer=_sentiment,
        command=partial(_uvicorn, "plain_fastapi"),
        variables=_variables,
        version=f"FastAPI {installed_version('fastapi')}, uvicorn {installed_version('uvicorn')}",
        settings="`def predict`, model loaded at import, one worker, uvloop and httptools; access log off",
    )


def echo() -> System:
    """What the web server alone can do."""
    return System(
        name="echo",
        task="text",
        path="/",
        body=_text,
        answer=lambda answer: answer,
        command=partial(_uvicorn, "echo"),
        variables=_variables,
        version=f"uvicorn {installed_version('uvicorn')}",
        settings="a bare ASGI callable that parses JSON and makes JSON, and predicts nothing; one worker, uvloop and "
        "httptools; access log off",
    )


def text_systems() -> list[System]:
    """Those that tell the sentiment of a text, and the echo."""
    return [
        presage("text", ("text",)),
        mosec("text"),
        bentoml(),
        litserve(),
        mlserver("text"),
        mlflow(),
        plain(),
        echo(),
    ]


def row_systems(fields: Sequence[str]) -> list[System]:
    """Those that are given a forest of a hundred trees."""
    return [presage("row", fields), mosec("row"), mlserver("row")]


def _variables(place: Place, **own: str) -> Mapping[str, str]:
    given = clean_environment(MODEL=str(place.artefact), **own)
    return {**given, "PATH": f"{place.python.parent}:{given.get('PATH', '')}", "HOME": str(place.folder)}


def _uvicorn(module: str, place: Place) -> list[str]:
    command = [sys.executable, "-m", "uvicorn", f"{module}:app", "--app-dir", str(PEERS), "--port", str(place.port)]
    return [*command, "--workers", "1", "--log-level", "warning", "--no-access-log"]


def _text(text: str) -> dict[str, str]:
    return {"text": text}


def _sentiment(answer: Any) -> Any:
    return answer["sentiment"]
