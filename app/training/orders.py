"""Orders: what somebody wants to have published, as it goes to the process that does it."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.config import ModelSettings
from app.errors import PublishRefused
from app.manifest import MANIFEST_FILE, Task
from app.registry.mlmodel import DESCRIPTION_FILE

Kind = Literal["estimator", "version", "mlflow"]
_SUFFIXES = (".joblib", ".pkl", ".pickle", ".skops")


class Order(BaseModel):
    """What to publish, from where on this machine, and under which name.

    `models` are the settings of whoever orders, and `by` is who that is; `origin` says where `source` comes from when
    it is only a download.
    """

    model_config = ConfigDict(frozen=True)

    source: Path
    kind: Kind
    name: str
    models: ModelSettings
    cpu_seconds: int
    by: str
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
