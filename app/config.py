"""The settings: small frozen groups, read from the environment here and nowhere else.

Each group reads its own variables; a variable's name is the field's name in capitals. `docs/settings.md` is generated
from this module, so a description here is what an operator reads there.
"""

import json
import os
import re
import sys
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.errors import InvalidSettings
from app.machine import available_cpus, available_memory
from app.manifest import MOST_TTL_SECONDS


def _split_commas(value: object) -> object:
    """`"a, b"` → `("a", "b")`; what is not text is left to the type's own check."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _no_trailing_slash(value: str) -> str:
    return value.rstrip("/")


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]


def _network(value: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(value)
    except ValueError:
        raise ValueError("must be addresses or networks, such as 10.0.0.0/8, separated by commas") from None


def _origin(value: str) -> str:
    host = r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])"
    if value != "*" and not re.fullmatch(rf"https?://{host}(:\d{{1,5}})?", value):
        raise ValueError("must be origins such as https://app.example.com, separated by commas, or *")
    return value.lower()


def _host_pattern(value: str) -> str:
    if not re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]", value):
        raise ValueError("must be host names without ports, such as api.example.com or *.example.com, or *")
    return value.lower()


Networks = Annotated[
    tuple[Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)], ...],
    NoDecode,
    BeforeValidator(_split_commas),
]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_split_commas)]
Hosts = Annotated[tuple[Annotated[str, AfterValidator(_host_pattern)], ...], NoDecode, BeforeValidator(_split_commas)]
Rate = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,11}/(second|minute|hour|day)$")]

_MOST_WORKERS = 256
_SHORTEST_SECRET = 32
_FEWEST_CHARACTERS = 10
# What stands in tutorials and examples; the first is the one of FastAPI's own documentation.
_KNOWN_SECRETS = ("09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",)
_PLACEHOLDERS = re.compile(
    r"change.?(me|this|it)|your.?(256|jwt|secret|key)|example|password|insecure|default|for.development", re.IGNORECASE
)


def check_secret(secret: str) -> None:
    """Raises ValueError for a secret that somebody could guess, or that a library would take for a document."""
    if len(secret) < _SHORTEST_SECRET or len(set(secret)) < _FEWEST_CHARACTERS:
        raise ValueError(f"must have at least {_SHORTEST_SECRET} random characters, as `openssl rand -hex 32` prints")
    if secret in _KNOWN_SECRETS or _PLACEHOLDERS.search(secret):
        raise ValueError("is an example's; use what `openssl rand -hex 32` prints")
    try:
        json.loads(secret)
    except ValueError:
        return
    raise ValueError("must not be JSON, a number included; use what `openssl rand -hex 32` prints")


def _checked(value: SecretStr) -> SecretStr:
    if value.get_secret_value():
        check_secret(value.get_secret_value())
    return value


class _Group(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)


class ServerSettings(_Group):
    """Where the service listens and how it writes its log."""

    host: str = Field("127.0.0.1", description="Address to listen on; `0.0.0.0` in a container.")
    port: int = Field(8000, ge=1, le=65535, description="TCP port to listen on.")
    workers: Annotated[int, Field(ge=1, le=_MOST_WORKERS)] | Literal["auto"] = Field(
        1,
        description="Processes that take requests, each of which uses one core; they share the models "
        "([operations.md](operations.md)). `auto`: as many as there are CPUs, by the limits of the container, too.",
    )
    lame_duck_seconds: float = Field(
        2.0,
        ge=0,
        le=300,
        description="How long the service goes on taking requests after SIGTERM, no longer ready, so that a balancer "
        "looks elsewhere before it is gone: longer than the balancer's checks take to notice.",
    )
    worker_timeout_seconds: float = Field(
        30.0,
        ge=1,
        le=3600,
        description="How long a worker's event loop may stand still before another worker takes its place.",
    )
    worker_max_bytes: int = Field(
        1 << 30,
        ge=0,
        description="How much memory a worker may have for itself, beside the models that all of them share, before "
        "another one takes its place; 0: any amount.",
    )
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

    @property
    def processes(self) -> int:
        """How many workers there are."""
        return min(available_cpus(), _MOST_WORKERS) if self.workers == "auto" else self.workers


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
    compile: Literal["auto", "off"] = Field(
        "auto",
        description="`auto`: each model is brought into faster forms, and those that prove to answer the same are used "
        "([runtimes.md](runtimes.md)); `off`: scikit-learn answers.",
    )
    model_signatures: Literal["auto", "require", "off"] = Field(
        "auto",
        description="`require`: only versions that a key in MODEL_KEYS_DIR has signed are loaded; `auto`: the same in "
        "production, and elsewhere a signature that is there must be good; `off`: signatures are not looked at.",
    )
    model_keys_dir: Path | None = Field(
        None,
        description="Folder of the public keys (`NAME.pub`, Ed25519 in PEM) whose signatures on models count; "
        "`python -m app models keygen` makes them.",
    )
    model_libraries: Literal["exact", "proven"] = Field(
        "exact",
        description="`exact`: a version that was fitted with another scikit-learn, another major version of numpy or "
        "another minor one of Python is refused; `proven`: it is served if its golden rows come out equal.",
    )
    skops_trusted_types: Names = Field(
        (),
        description="Types, by full name and separated by commas, that a `model.skops` may contain beside those that "
        "skops trusts and what scikit-learn's trees and calibrated classifiers hold.",
    )

    models_max_bytes: int = Field(
        0,
        ge=0,
        description="Most memory that versions may take; one that would not fit is refused, and versions that no alias "
        "names make room for others. 0: three quarters of the machine's, or of the container's.",
    )
    share_models_above_bytes: int = Field(
        8 << 20,
        ge=0,
        description="With several workers: once versions that came while they ran take more memory in each of them, "
        "new workers begin that share them.",
    )
    share_models_after_seconds: float = Field(
        60.0, ge=0, description="How long nothing may have changed before that; 0: it never happens."
    )
    model_trials: Literal["auto", "off"] = Field(
        "auto",
        description="`auto`: a version that was never loaded here is loaded in a process of its own first, where it "
        "can do no harm ([operations.md](operations.md#new-versions-and-moved-aliases)); `off`: it is loaded at once.",
    )
    model_trial_seconds: int = Field(
        60,
        ge=1,
        le=3600,
        description="CPU time that such a trial may take; three times as long by the clock.",
    )
    model_trials_dir: Path = Field(
        Path("var/trials"), description="Folder in which the outcomes of trials are kept, so that there is one of each."
    )

    @property
    def max_bytes(self) -> int:
        """Memory that versions may take, in bytes."""
        return self.models_max_bytes or available_memory() * 3 // 4

    @property
    def required(self) -> tuple[str, ...]:
        """The names of the models that readiness waits for."""
        return self.required_models or (self.default_model,)


class SigningSettings(_Group):
    """Who signs what is published from here; a server needs none of it."""

    # pydantic guards names that begin with `model_`; these are ours.
    model_config = SettingsConfigDict(protected_namespaces=())

    model_signing_key: Path | None = Field(
        None, description="Private key (`NAME.key`) with which `train` and `publish` sign new versions; empty: none."
    )
    model_key_passphrase: SecretStr = Field(
        SecretStr(""), description="Passphrase of private keys for models; empty: it is asked for where one is needed."
    )


class PublishingSettings(_Group):
    """How long a publication may take, and where models come from that were registered elsewhere."""

    publish_seconds: int = Field(
        300,
        ge=1,
        le=86_400,
        description="How long `models publish` may take, by the clock and in CPU time, to make a version, and as long "
        "again to download it; MODELS_MAX_BYTES is the memory that it may take.",
    )
    mlflow_tracking_uri: SecretStr = Field(
        SecretStr(""),
        description="MLflow tracking server that `models publish models:/…` asks. MLflow's own variables, such as "
        "`MLFLOW_TRACKING_TOKEN`, are heeded by its client.",
    )
    mlflow_seconds: int = Field(
        10, ge=1, le=600, description="How long that server may take to answer one request; it is asked twice."
    )


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


class EdgeSettings(_Group):
    """Who is believed about a request, and whose pages may make one."""

    allowed_hosts: Hosts = Field(
        ("*",),
        description="Names that requests may be addressed to (`Host`), by commas; `*.example.com` takes any name below "
        "it, `*` every name. `/health/…` answers to all.",
    )
    trusted_proxies: Networks = Field(
        (),
        description="Addresses or networks of proxies, by commas, whose `X-Forwarded-For` and `X-Forwarded-Proto` are "
        "believed; from everybody else they are ignored.",
    )
    cors_origins: Origins = Field(
        (),
        description="Origins whose pages may call, by commas; empty: none. Credentials of browsers are never allowed, "
        "so `*` is safe with tokens.",
    )


class AuthSettings(_Group):
    """Who may call. Tokens are JWTs, made here or by an issuer whose keys are published."""

    auth_mode: Literal["jwt", "platform", "none"] = Field(
        "jwt",
        description="`jwt`: callers show a token or an API key; `platform`: a proxy has authenticated them and names "
        "them in PLATFORM_HEADER; `none`: everybody may do everything (refused in production).",
    )
    jwt_secret: Annotated[SecretStr, AfterValidator(_checked)] = Field(
        SecretStr(""),
        description="Secret that signs tokens (HS256), at least 32 random characters; empty: the keys in JWT_KEYS_DIR, "
        "and in development one that is made there.",
    )
    jwt_keys_dir: Path = Field(
        Path("var/keys"),
        description="Folder of keys, read again every second: `KID.pem` (RSA or EC P-256, private or public) and "
        "`KID.secret`. The last name that can sign, signs; all verify.",
    )
    jwt_issuer: str = Field("presage", min_length=1, description="`iss` of tokens made here.")
    jwt_audience: str = Field("presage", min_length=1, description="`aud` that a token must have.")
    jwt_leeway_seconds: int = Field(
        30, ge=0, le=300, description="How far ahead `iat` and `nbf` may be, for clocks that differ; `exp` has none."
    )
    token_seconds: int = Field(3600, ge=60, le=86_400 * 30, description="How long an issued token is valid.")
    jwks_url: str = Field(
        "",
        pattern=r"^(https://[^@\s]+|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?(/[^@\s]*)?)?$",
        description="JWKS of an external issuer whose tokens are taken, too; `https`, or `http` on this machine.",
    )
    jwks_issuer: str = Field("", description="`iss` of that issuer's tokens.")
    jwks_audience: str = Field("", description="`aud` of that issuer's tokens; empty: JWT_AUDIENCE.")
    jwks_token_types: Names = Field(
        ("at+jwt", "application/at+jwt", "JWT"), description="`typ` in the header of that issuer's access tokens."
    )
    platform_header: str = Field(
        "",
        pattern=r"^([A-Za-z0-9-]{1,64})?$",
        description="Header in which the proxy names the caller, such as `X-Forwarded-User`; believed only from "
        "TRUSTED_PROXIES.",
    )
    platform_scopes: Names = Field(
        ("predict", "feedback"),
        description="What a caller whom the platform names may do, unless a client of that name is registered.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.jwks_url and not self.jwks_issuer:
            raise ValueError("JWKS_URL needs JWKS_ISSUER: whose tokens its keys sign")
        if self.jwks_issuer == self.jwt_issuer:
            raise ValueError("JWKS_ISSUER must differ from JWT_ISSUER, whose subjects are our own clients")
        if self.auth_mode == "platform" and not self.platform_header:
            raise ValueError("AUTH_MODE=platform needs PLATFORM_HEADER: where the proxy names the caller")
        return self


class LimitSettings(_Group):
    """How much one caller may ask for. Rates are `COUNT/second`, `/minute`, `/hour` or `/day`."""

    rate_limit: Rate = Field(
        "60000/minute",
        description="Rows that one caller may have predicted by one model, unless the client has a plan of its own.",
    )
    address_rate_limit: Rate = Field(
        "600/minute", description="Requests without a valid credential from one address; `/health/…` is free."
    )


class BoundSettings(_Group):
    """How much one request may carry, and how long it may take to come."""

    max_url_bytes: int = Field(8 << 10, ge=256, description="Longest path and query; over it: 414.")
    max_header_bytes: int = Field(32 << 10, ge=1024, description="Most bytes of a request's headers; over it: 431.")
    max_headers: int = Field(100, ge=10, description="Most headers of a request; over it: 431.")
    header_seconds: float = Field(
        5.0, gt=0, le=300, description="How long a request's head may take to come; after it: 408."
    )
    body_seconds: float = Field(
        30.0, gt=0, le=3600, description="How long a request's body may take to come; after it: 408."
    )
    max_connections_per_address: int = Field(
        512, ge=0, description="Most connections of one address that is no trusted proxy; 0: any number."
    )
    max_body_bytes: int = Field(1 << 20, ge=1024, description="Largest body of a request for one prediction.")
    max_batch_bytes: int = Field(16 << 20, ge=1024, description="Largest body of a batch request.")
    max_batch_rows: int = Field(10_000, ge=1, le=100_000, description="Most rows of one batch request.")


class InferenceSettings(_Group):
    """How long a caller may be kept waiting for a model."""

    request_timeout_ms: int = Field(
        5000,
        ge=1,
        le=600_000,
        description="How long one prediction may take; after it: 504, and what could not be in time is refused at "
        "once. `X-Request-Timeout-Ms` asks for less.",
    )
    batch_timeout_ms: int = Field(60_000, ge=1, le=3_600_000, description="The same for a batch.")


class StorageSettings(_Group):
    """Where predictions are put on record: a journal on local disk first, the database later."""

    database_url: SecretStr = Field(
        SecretStr("sqlite:///var/presage.db"),
        description="`sqlite:///FILE`, or `postgresql://USER:PASSWORD@HOST/NAME`; it is never waited for.",
    )
    redis_url: SecretStr = Field(
        SecretStr(""),
        description="`redis://…` or `rediss://…`: through it processes share their counts of limits; never waited for.",
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


class CacheSettings(_Group):
    """Whether answers are kept, so that the same question does not cost the model a second time."""

    cache: Literal["off", "memory", "redis"] = Field(
        "off",
        description="Where answers are kept, row by row: in this process (`memory`), and beside that in the Redis of "
        "REDIS_URL, for all processes (`redis`).",
    )
    cache_max_bytes: int = Field(64 << 20, ge=1 << 20, description="Most bytes of answers kept in this process.")
    cache_ttl_seconds: int = Field(
        300,
        ge=1,
        le=MOST_TTL_SECONDS,
        description="Age at which an answer is forgotten, unless the model says otherwise.",
    )


Exposure = Literal["on", "token", "off"]


class Environment(_Group):
    """What kind of place this is."""

    environment: Literal["development", "production"] = Field(
        "development",
        description="`production` refuses AUTH_MODE=none and to make its own keys, asks models for signatures, closes "
        "docs and metrics, and writes JSON log lines.",
    )
    docs: Literal["auto", "on", "token", "off"] = Field(
        "auto",
        description="Whether `/docs` and `/openapi.json` are served: to everybody (`on`), with the scope `read` "
        "(`token`), or not; `auto`: `on` in development, `off` in production.",
    )
    metrics: Literal["auto", "on", "token", "off"] = Field(
        "auto", description="The same for `/metrics`; `auto`: `on` in development, `token` in production."
    )

    @property
    def production(self) -> bool:
        """Whether what is convenient gives way to what is safe."""
        return self.environment == "production"

    @property
    def docs_exposure(self) -> Exposure:
        """How the docs page and the OpenAPI document are served."""
        return self.docs if self.docs != "auto" else "off" if self.production else "on"

    @property
    def metrics_exposure(self) -> Exposure:
        """How `/metrics` is served."""
        return self.metrics if self.metrics != "auto" else "token" if self.production else "on"


class Settings(BaseModel):
    """All settings of one service; build with no arguments to read the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: Environment = Field(default_factory=Environment)
    server: ServerSettings = Field(default_factory=ServerSettings)
    models: ModelSettings = Field(default_factory=ModelSettings)
    signing: SigningSettings = Field(default_factory=SigningSettings)
    edge: EdgeSettings = Field(default_factory=EdgeSettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    bounds: BoundSettings = Field(default_factory=BoundSettings)
    inference: InferenceSettings = Field(default_factory=InferenceSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    publishing: PublishingSettings = Field(default_factory=PublishingSettings)

    @model_validator(mode="after")
    def _safe_in_production(self) -> Self:
        if self.place.production and self.auth.auth_mode == "none":
            raise ValueError("AUTH_MODE=none is refused in production")
        if self.auth.auth_mode == "platform" and not self.edge.trusted_proxies:
            raise ValueError("AUTH_MODE=platform needs TRUSTED_PROXIES: from whom PLATFORM_HEADER is believed")
        return self

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.cache.cache == "redis" and not self.storage.redis_url.get_secret_value().strip():
            raise ValueError("CACHE=redis needs REDIS_URL: where answers are kept for all processes")
        return self

    @property
    def json_logs(self) -> bool:
        """Whether the log is one JSON object a line; `auto` asks whether it goes to a terminal."""
        if self.server.log_format == "auto":
            return self.place.environment == "production" or not sys.stdout.isatty()
        return self.server.log_format == "json"


def bare_environment() -> dict[str, str]:
    """What a process of ours needs that is to run somebody else's code: none of the settings, and no secrets."""
    kept = re.compile(r"PATH|HOME|LANG|LC_[A-Z]+|TZ|TMPDIR|VIRTUAL_ENV|LD_LIBRARY_PATH|PYTHON\w+|\w+_NUM_THREADS")
    return {name: value for name, value in os.environ.items() if kept.fullmatch(name)}  # noqa: TID251 -- here it is read


def foreign_environment() -> dict[str, str]:
    """All but our own settings: for a process that runs a client with credentials of its own."""
    groups = (field.default_factory for field in Settings.model_fields.values())
    ours = {name.upper() for group in groups for name in getattr(group, "model_fields", ())}
    return {name: value for name, value in os.environ.items() if name.upper() not in ours}  # noqa: TID251 -- the same


def read_settings() -> Settings:
    """Read every group from the environment.

    Raises InvalidSettings with one line for each wrong variable; a value is never repeated there, since it may be a
    secret.
    """
    groups: dict[str, Any] = {}
    problems: list[str] = []
    for name, field in Settings.model_fields.items():
        try:
            groups[name] = field.get_default(call_default_factory=True)
        except ValidationError as error:
            problems += _problems(error)
    if not problems:
        try:
            return Settings(**groups)
        except ValidationError as error:
            problems = _problems(error)
    raise InvalidSettings(problems)


def _problems(error: ValidationError) -> list[str]:
    """A line for each variable; what several do not do together names them itself."""
    lines = []
    for found in error.errors(include_input=False):
        name = str(found["loc"][0]).upper() if found["loc"] else ""
        message = found["msg"].removeprefix("Value error, ")
        lines.append(f"{name}: {message}" if name else message)
    return lines
