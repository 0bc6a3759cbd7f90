"""The settings: small frozen groups, read from the environment here and nowhere else.

Each group reads its own variables; a variable's name is the field's name in capitals. `docs/settings.md` is generated
from this module, so a description here is what an operator reads there.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.errors import InvalidSettings


def _split_commas(value: object) -> object:
    """`"a, b"` → `("a", "b")`; what is not text is left to the type's own check."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _no_trailing_slash(value: str) -> str:
    return value.rstrip("/")


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]


class _Group(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)


class ServerSettings(_Group):
    """Where the service listens and how it writes its log."""

    host: str = Field("127.0.0.1", description="Address to listen on; `0.0.0.0` in a container.")
    port: int = Field(8000, ge=1, le=65535, description="TCP port to listen on.")
    root_path: Annotated[str, AfterValidator(_no_trailing_slash)] = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~/-]*)?$",
        description="Path prefix under which a proxy publishes the service, such as `/presage`.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe log line that is written."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto",
        description="`json` objects, or `console` lines for people; `auto`: `console` on a terminal in development.",
    )


class ModelSettings(_Group):
    """Which models are loaded, and which must serve before the service is ready."""

    # pydantic guards names that begin with `model_`; these are ours.
    model_config = SettingsConfigDict(protected_namespaces=())

    models_dir: Path = Field(Path("models"), description="Folder of model versions: `<name>/<version>/`.")
    default_model: str = Field(
        "sentiment", description="The model behind `/v2/predict` and `/v2/batch` when the path names none."
    )
    required_models: Names = Field(
        (),
        description="Models that must serve before `/health/ready` says so, by commas; empty: the default model.",
    )
    model_modules: Names = Field(
        (),
        description="Importable packages, separated by commas, that artefacts may contain beside scikit-learn's own: "
        "custom transformers, `pandas`, `xgboost`.",
    )

    @property
    def required(self) -> tuple[str, ...]:
        """The names of the models that readiness waits for."""
        return self.required_models or (self.default_model,)


class TrainingSettings(_Group):
    """What training may look at beside the data that it fits on."""

    evaluation_data: Path | None = Field(
        None,
        description="CSV file (`text`, and `label` or `rating`) on which `train sentiment --evaluate` measures; "
        "no model is fitted on it.",
    )
    evaluation_name: str = Field(
        "a file of labelled texts", description="What the record says that the file is: its source, in a few words."
    )


class BoundSettings(_Group):
    """How much one request may carry."""

    max_body_bytes: int = Field(1 << 20, ge=1024, description="Largest body of a request for one prediction.")
    max_batch_bytes: int = Field(16 << 20, ge=1024, description="Largest body of a batch request.")
    max_batch_rows: int = Field(10_000, ge=1, le=100_000, description="Most rows of one batch request.")


class StorageSettings(_Group):
    """Where predictions are put on record: a journal on local disk first, the database later."""

    database_url: SecretStr = Field(
        SecretStr("sqlite:///var/presage.db"),
        description="`sqlite:///FILE`, or `postgresql://USER:PASSWORD@HOST/NAME`; it is never waited for.",
    )
    journal_dir: Path = Field(
        Path("var/journal"), description="Folder of the journal; on a disk that is this machine's."
    )
    log_policy: Literal["require", "best-effort", "off"] = Field(
        "require",
        description="What happens when the journal cannot be written: `require` answers 503, `best-effort` answers and "
        "counts the loss; `off` keeps no log at all.",
    )
    journal_max_bytes: int = Field(
        1 << 30,
        ge=1 << 20,
        description="Largest journal; once it is full, because no database took it, the policy speaks.",
    )
    journal_sync_ms: int = Field(
        100,
        ge=0,
        le=60_000,
        description="How often the journal is forced to disk, against power loss; 0: at each record.",
    )
    log_retention_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description="Age in days at which predictions are deleted, unless the model says otherwise; 0: never.",
    )
    log_hash_key: SecretStr = Field(
        SecretStr(""),
        description="Key of the hashes that stand for fields a model logs as `hash`; empty: one is made in `var/`.",
    )


class Environment(_Group):
    """What kind of place this is."""

    environment: Literal["development", "production"] = Field(
        "development", description="`production` closes the docs page unless `DOCS=on` and writes JSON log lines."
    )
    docs: Literal["auto", "on", "off"] = Field(
        "auto", description="Whether `/docs` and `/openapi.json` are served; `auto`: not in production."
    )

    @property
    def docs_open(self) -> bool:
        """Whether the docs page and the OpenAPI document are served."""
        return self.docs == "on" or (self.docs == "auto" and self.environment == "development")


class Settings(BaseModel):
    """All settings of one service; build with no arguments to read the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: Environment = Field(default_factory=Environment)
    server: ServerSettings = Field(default_factory=ServerSettings)
    models: ModelSettings = Field(default_factory=ModelSettings)
    bounds: BoundSettings = Field(default_factory=BoundSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)

    @property
    def json_logs(self) -> bool:
        """Whether the log is one JSON object a line; `auto` asks whether it goes to a terminal."""
        if self.server.log_format == "auto":
            return self.place.environment == "production" or not sys.stdout.isatty()
        return self.server.log_format == "json"


def read_settings() -> Settings:
    """Read every group from the environment.

    Raises InvalidSettings with one line for each wrong variable; a value is never repeated there, since it may be a
    secret.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors(include_input=False)]
        raise InvalidSettings(problems) from None
