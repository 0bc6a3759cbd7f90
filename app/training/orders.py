"""Publications that are ordered at a terminal: what to publish, and the process of its own that does it."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.config import ModelSettings, Settings, bare_environment
from app.errors import PublishRefused
from app.manifest import MANIFEST_FILE, Manifest, Task
from app.registry.errands import Errands, Say
from app.registry.mlmodel import DESCRIPTION_FILE

Kind = Literal["estimator", "version", "mlflow"]
_SUFFIXES = (".joblib", ".pkl", ".pickle", ".skops")


class Order(BaseModel):
    """What to publish, from where on this machine, and under which name.

    `models` are the settings of whoever orders; `origin` says where `source` comes from when it is only a download.
    """

    model_config = ConfigDict(frozen=True)

    source: Path
    kind: Kind
    name: str
    models: ModelSettings
    cpu_seconds: int
    data: Path | None = None
    target: str = ""
    task: Task | None = None
    description: str = ""
    aliases: tuple[str, ...] = ()
    version: int | None = None
    dry_run: bool = False
    origin: str = ""

    @property
    def title(self) -> str:
        """The source in a word."""
        if self.kind == "version":
            return "/".join(self.source.parts[-2:])
        return self.origin.partition(" ")[0] or self.source.name


def kind_of(source: Path) -> Kind:
    """What a file or a folder is. Raises PublishRefused when it is nothing that can be published."""
    if source.is_file():
        if source.suffix not in _SUFFIXES:
            raise PublishRefused(f"{source} should be a file of a fitted estimator: {', '.join(_SUFFIXES)}")
        return "estimator"
    if (source / MANIFEST_FILE).is_file():
        return "version"
    if (source / DESCRIPTION_FILE).is_file():
        return "mlflow"
    if source.is_dir():
        raise PublishRefused(f"{source} has neither a {MANIFEST_FILE} nor an {DESCRIPTION_FILE}")
    raise PublishRefused(f"there is no file or folder {source}")


def deliver(order: Order, settings: Settings, say: Say) -> Manifest:
    """Publish in a process of its own, which has limits of time and memory, and no secrets.

    Raises PublishRefused, whatever has happened there.
    """
    seconds = settings.publishing.publish_seconds
    with Errands("app.training.carrying", bare_environment(), seconds, setting="PUBLISH_SECONDS") as errands:
        return Manifest.model_validate_json(errands.ask(order.model_dump(mode="json"), say))
