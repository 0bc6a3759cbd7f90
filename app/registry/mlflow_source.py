"""Models that are registered with an MLflow server: which version a name stands for, and the version's files.

MLflow's client works in a process of its own (`python -m app.registry.mlflow_source`), which has its credentials and
none of ours: it takes seconds to import, reads dozens of variables, and may wait for a server for as long as it likes.
Nothing that comes from the server is opened there.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from app.config import PublishingSettings, foreign_environment
from app.errors import InvalidSettings, PublishRefused
from app.registry.errands import Errands, Say, run_errands

_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")
_RUN = re.compile(r"runs:/(?P<run>[^/]+)/(?P<path>.+)")
_CREDENTIALS = re.compile(r"//[^/@\s]+@")
_LONGEST_REASON = 300
_ANSWERS_LATE = ("ReadTimeout", "ConnectTimeout", "timed out")
# Its client would wait for a quarter of an hour, and ask eight times.
_ATTEMPTS = 1


class Registered(BaseModel):
    """A version in MLflow's registry, or the model of a run; `server` is its address without credentials."""

    model_config = ConfigDict(frozen=True)

    uri: str
    server: str
    run_id: str = ""
    description: str = ""

    @property
    def origin(self) -> str:
        """Where a version comes from, as its manifest says."""
        run = f", run {self.run_id}" if self.run_id else ""
        return f"{self.uri} at {self.server}{run}"


def is_registered(source: str) -> bool:
    """Whether `source` names a model in MLflow's way, and no file."""
    return source.startswith(("models:/", "runs:/"))


def is_followed(source: str) -> bool:
    """Whether what `source` names may become another version."""
    found = _REGISTERED.fullmatch(source)
    return found is not None and found["alias"] is not None


class MlflowSource:
    """The server of MLFLOW_TRACKING_URI. Open it as a context manager."""

    def __init__(self, settings: PublishingSettings) -> None:
        self._server = settings.mlflow_tracking_uri.get_secret_value()
        if not self._server:
            raise InvalidSettings(["MLFLOW_TRACKING_URI: is needed for models:/… and runs:/…, and is not set"])
        environment = {**foreign_environment(), **_calm(settings)}
        self._errands = Errands(__name__, environment, settings.publish_seconds, setting="PUBLISH_SECONDS")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._errands.close()

    def resolve(self, source: str, say: Say) -> Registered:
        """The version that `source` stands for now. Raises PublishRefused."""
        if not (_REGISTERED.fullmatch(source) or _RUN.fullmatch(source)):
            raise PublishRefused(f"{source} is none of models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN/PATH")
        return Registered.model_validate(self._ask("resolve", say, source=source))

    def fetch(self, registered: Registered, folder: Path, say: Say) -> Path:
        """Download its files below `folder`; where they are. Raises PublishRefused."""
        return Path(self._ask("fetch", say, source=registered.uri, folder=str(folder)))

    def _ask(self, what: str, say: Say, **more: str) -> Any:
        return self._errands.ask({"what": what, "server": self._server, **more}, say)


def _calm(settings: PublishingSettings) -> Mapping[str, str]:
    """MLflow's own variables: telemetry off, and a server that does not answer is given up soon."""
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(settings.mlflow_seconds),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(_ATTEMPTS),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    }


def _errand(order: dict[str, Any], say: Say) -> Any:
    """In the process."""
    server, resolving = _without_credentials(order["server"]), order["what"] == "resolve"
    say(f"asking {server}" if resolving else f"downloading {order['source']}")
    try:
        import mlflow  # noqa: PLC0415 -- an extra
    except ModuleNotFoundError:
        advice = "pip install mlflow-skinny: it is no requirement of the service (the extra mlflow)"
        raise PublishRefused(advice) from None
    mlflow.set_tracking_uri(order["server"])
    try:
        if resolving:
            return _resolve(order["source"], server).model_dump()
        return mlflow.artifacts.download_artifacts(artifact_uri=order["source"], dst_path=order["folder"])
    except Exception as error:  # noqa: BLE001 -- the server, or where it keeps its files, may make it raise anything
        raise PublishRefused(f"{order['source']}: {_reason(str(error), server)}") from None


def _resolve(source: str, server: str) -> Registered:
    from mlflow import MlflowClient  # noqa: PLC0415

    client = MlflowClient()
    if run := _RUN.fullmatch(source):
        return Registered(uri=source, server=server, run_id=client.get_run(run["run"]).info.run_id)
    found = _REGISTERED.fullmatch(source)
    assert found is not None  # noqa: S101 -- `resolve` has looked
    if found["alias"]:
        version = client.get_model_version_by_alias(found["name"], found["alias"])
    else:
        version = client.get_model_version(found["name"], found["version"])
    uri = f"models:/{version.name}/{version.version}"
    return Registered(uri=uri, server=server, run_id=version.run_id or "", description=version.description or "")


def _reason(said: str, server: str) -> str:
    """What MLflow said, in one line; of a connection that failed it says too much, its credentials included."""
    if "failed with exception" in said:
        late = any(word in said for word in _ANSWERS_LATE)
        return f"{server} {'does not answer in time (MLFLOW_SECONDS)' if late else 'cannot be reached'}"
    return _without_credentials(" ".join(said.split()))[:_LONGEST_REASON]


def _without_credentials(text: str) -> str:
    return _CREDENTIALS.sub("//", text)


if __name__ == "__main__":
    run_errands(_errand)
