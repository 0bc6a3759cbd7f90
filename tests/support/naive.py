"""The same service as somebody writes it over a weekend, by the tutorials and with the defaults of every package.

It is here to be attacked: a check that it passes proves nothing.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Depends, FastAPI, HTTPException, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import OAuth2PasswordBearer
from jose import JWTError, jwt
from prometheus_fastapi_instrumentator import Instrumentator
from pydantic import BaseModel, Field

from tests.support.outside import Target
from tests.support.server import ROOT, clean_environment, free_port
from tests.support.tokens import SECRET

KEYS = {"rsa": os.environ.get("JWT_PUBLIC_KEY", "")}
PREDICTIONS: dict[str, dict[str, Any]] = {}
CLIENTS: list[dict[str, Any]] = []

app = FastAPI(debug=True)
app.add_middleware(
    CORSMiddleware, allow_origins=["*"], allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
)
Instrumentator().instrument(app).expose(app)
oauth2_scheme = OAuth2PasswordBearer(tokenUrl="auth/token")


class Text(BaseModel):
    """What version 1 takes."""

    text: str


class Iris(BaseModel):
    """One flower."""

    sepal_length: float = Field(alias="sepal length (cm)")
    sepal_width: float = Field(alias="sepal width (cm)")
    petal_length: float = Field(alias="petal length (cm)")
    petal_width: float = Field(alias="petal width (cm)")


class IrisRequest(BaseModel):
    """What version 2 takes."""

    inputs: Iris


def get_current_user(token: Annotated[str, Depends(oauth2_scheme)]) -> str:
    """The subject of the token."""
    try:
        key = KEYS.get(jwt.get_unverified_header(token).get("kid", ""), SECRET)
        payload = jwt.decode(token, key, algorithms=["HS256", "RS256"], audience="presage")
    except JWTError as error:
        raise HTTPException(401, f"Could not validate credentials: {error}", {"WWW-Authenticate": "Bearer"}) from error
    return str(payload.get("sub"))


User = Annotated[str, Depends(get_current_user)]


@app.get("/health/live")
async def live() -> dict[str, str]:
    """The process is up."""
    return {"status": "live"}


@app.post("/predict")
async def predict(body: Text, response: Response, user: User) -> dict[str, Any]:
    """Predict a sentiment."""
    prediction_id = str(uuid4())
    sentiment = "positive" if "love" in body.text else "negative"
    PREDICTIONS[prediction_id] = {"user": user, "text": body.text, "sentiment": sentiment}
    response.headers["X-Prediction-Id"] = prediction_id
    return {"sentiment": sentiment}


@app.post("/v2/predict/iris")
async def predict_iris(body: IrisRequest, user: User) -> dict[str, Any]:
    """Predict a species."""
    return {"inputs": body.inputs.model_dump(), "prediction": "setosa" if body.inputs.petal_length < 2 else "other"}


@app.get("/v2/predictions/{prediction_id}")
async def get_prediction(prediction_id: str, user: User) -> dict[str, Any]:
    """Look a prediction up."""
    if prediction_id not in PREDICTIONS:
        raise HTTPException(404, f"Prediction {prediction_id} not found")
    return PREDICTIONS[prediction_id]


@app.get("/admin/clients")
async def list_clients(user: User) -> list[dict[str, Any]]:
    """List the clients."""
    return CLIENTS


@app.post("/admin/clients")
async def add_client(client: dict[str, Any], user: User) -> dict[str, Any]:
    """Register a client."""
    CLIENTS.append({**client, "created_by": user})
    return client


@contextmanager
def running_naive(public_key: bytes, log: Path) -> Iterator[Target]:
    """The service above in a process of its own, by the command that everybody uses."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "tests.support.naive:app", "--port", str(port)]
    environment = clean_environment(JWT_PUBLIC_KEY=public_key.decode())
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(process, port, log)
        yield Target(port, process.pid, public_key)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=5).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(log.read_text())
