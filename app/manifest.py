"""The manifest: the typed document beside every artefact, with everything a server must know about a version.

`models/README.md` describes the same contract for people. The document is JSON, refuses unknown members, and its
`format` number changes whenever its meaning does.
"""

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, model_validator

FORMAT: Literal[1] = 1
MANIFEST_FILE = "manifest.json"
SIGNATURES_FILE = "manifest.sig"
ARTEFACT_FILE: Final = "model.joblib"
SKOPS_FILE: Final = "model.skops"
LOG_RULES_FILE = "log.json"
CACHE_RULES_FILE = "cache.json"
TRAFFIC_RULES_FILE = "traffic.json"

MOST_TTL_SECONDS = 30 * 86_400

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
ALIAS = re.compile(r"[a-z][a-z0-9-]{0,31}")

Task = Literal["text-classification", "classification", "regression"]
Dtype = Literal["text", "float", "integer", "boolean", "category"]
Container = Literal["texts", "matrix", "objects", "frame"]
ArtefactFile = Literal["model.joblib", "model.skops"]
Label = bool | int | str
Scalar = bool | int | FiniteFloat | str | None

ModelName = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]
Version = Annotated[int, Field(ge=1, le=10**9)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, ser_json_inf_nan="null")


class InputField(_Document):
    """One input, as training saw it.

    `minimum` and `maximum` are what training saw: a value outside is answered, and the docs page shows the range.
    `categories` are all there are: another value is refused. `missing` says whether null, or leaving the field out, is
    an input like any other (the estimator then receives NaN).
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    dtype: Dtype
    description: str = ""
    missing: Literal["refuse", "allow"] = "refuse"
    minimum: float | None = None
    maximum: float | None = None
    categories: tuple[Label, ...] | None = None
    max_length: Annotated[int, Field(ge=1)] | None = None
    example: Scalar = None

    @model_validator(mode="after")
    def _fits_dtype(self) -> Self:
        if (self.dtype == "category") != bool(self.categories):
            raise ValueError("a category field lists its categories, and no other field does")
        if self.dtype == "text" and not self.max_length:
            raise ValueError("a text field has a max_length")
        return self


class Outputs(_Document):
    """What comes out. `labels` are in the order of the estimator's classes; regression has none."""

    target: str
    labels: tuple[Label, ...] = ()
    probabilities: bool = False
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None


class Artefact(_Document):
    """The file of record. `container` is what the estimator takes.

    `texts`: a list of strings; `matrix`: float64 of shape (rows, fields); `objects`: the same shape, of Python objects;
    `frame`: a pandas DataFrame with the fields as columns.
    """

    file: ArtefactFile = "model.joblib"
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=1, description="bytes")]
    container: Container


class Versions(_Document):
    """The libraries with which the artefact was written."""

    python: str
    scikit_learn: str
    numpy: str
    scipy: str
    joblib: str


class Evaluation(_Document):
    """Figures, on which data, and how they were measured."""

    data: str
    rows: Annotated[int, Field(ge=0)]
    measured: str
    metrics: dict[str, float]


class Training(_Document):
    """What the estimator was fitted on, and how good it turned out to be."""

    data: str
    rows: Annotated[int, Field(ge=1)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    evaluations: tuple[Evaluation, ...] = ()


class GoldenRow(_Document):
    """An input and the answer it had at publication."""

    inputs: dict[str, Scalar]
    prediction: bool | int | float | str
    probabilities: dict[str, float] | None = None


class Golden(_Document):
    """Rows that must come out as recorded, numbers within `tolerance` (absolute, plus relative to the number)."""

    rows: Annotated[tuple[GoldenRow, ...], Field(min_length=1)]
    tolerance: Annotated[float, Field(ge=0, le=0.01)] = 1e-6


class NumberProfile(_Document):
    """How a number was distributed in training: `counts[i]` of them in [edges[i], edges[i+1])."""

    kind: Literal["number"] = "number"
    count: int
    missing: int
    mean: float
    std: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]


class CategoryProfile(_Document):
    """How often each category occurred in training."""

    kind: Literal["category"] = "category"
    count: int
    missing: int
    counts: dict[str, int]


FieldProfile = Annotated[NumberProfile | CategoryProfile, Field(discriminator="kind")]


class Profile(_Document):
    """The reference for drift: each input (a text by its length in characters), the predictions, and the scores.

    `score` is the probability of the predicted label; regression has none.
    """

    inputs: dict[str, FieldProfile]
    prediction: FieldProfile
    score: NumberProfile | None = None


class Card(_Document):
    """What people should know before they use the model."""

    description: str
    intended_use: str = ""
    limitations: str = ""


class Origin(_Document):
    """When and from which code a version was made. `code` is the project's version and, in a checkout, its commit."""

    created_at: datetime
    code: str
    recipe: str


class Manifest(_Document):
    """One version of one model."""

    # A JSON document has no tuples and no datetimes: strictness is for its scalars.
    format: Literal[1] = FORMAT
    name: ModelName
    version: Version
    task: Task
    fields: Annotated[tuple[InputField, ...], Field(min_length=1)]
    outputs: Outputs
    artefact: Artefact
    versions: Versions
    training: Training
    golden: Golden
    profile: Profile
    card: Card
    origin: Origin

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = [f.name for f in self.fields]
        if len(set(names)) != len(names):
            raise ValueError("two fields have the same name")
        if (self.task == "regression") == bool(self.outputs.labels):
            raise ValueError("a classifier has labels, and a regression none")
        if len(set(map(str, self.outputs.labels))) != len(self.outputs.labels):
            raise ValueError("two labels are written alike")
        if (self.artefact.container == "texts") != (len(names) == 1 and self.fields[0].dtype == "text"):
            raise ValueError("the container 'texts' goes with exactly one text field")
        return self

    def to_json(self) -> bytes:
        """The document as it stands on disk: indented, with a newline at its end."""
        return self.model_dump_json(indent=2).encode() + b"\n"


Keep = Literal["store", "hash", "drop"]


class LogRules(_Document):
    """`models/<name>/log.json`: what the prediction log may keep of a model's inputs, and for how long."""

    default: Keep = "store"
    fields: dict[str, Keep] = Field(default_factory=dict)
    retention_days: Annotated[int, Field(ge=0, le=36_500, description="0: for ever")] | None = None

    @property
    def hashes(self) -> bool:
        """Whether a key is needed."""
        return self.default == "hash" or "hash" in self.fields.values()


class CacheRules(_Document):
    """`models/<name>/cache.json`: whether answers of a model are kept, who may get one that was made for another."""

    cache: Literal["shared", "private", "off"] = "shared"
    ttl_seconds: Annotated[int, Field(ge=1, le=MOST_TTL_SECONDS)] | None = None


class TrafficRules(_Document):
    """`models/<name>/traffic.json`: what else answers, or is only tried, when a caller names no version.

    `challenger_weight` is the share of keys for which the version with the alias `challenger` answers. The key comes
    from the caller (`principal`), a header (`header:NAME`) or a field of the row (`field:NAME`). `shadow_share` is the
    share of answered rows on which the version with the alias `shadow` is tried.
    """

    challenger_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    sticky_by: Annotated[str, StringConstraints(pattern=r"^(principal|header:[A-Za-z0-9-]{1,64}|field:.{1,200})$")] = (
        "principal"
    )
    shadow_share: Annotated[float, Field(ge=0, le=1)] = 1.0


def parse_manifest(raw: bytes | str) -> Manifest:
    """Raises pydantic's ValidationError when the document does not fit."""
    return Manifest.model_validate_json(raw)


def is_alias(name: str) -> bool:
    """Whether `name` can name a version: a lower-case word, never a number."""
    return ALIAS.fullmatch(name) is not None


def is_model_name(name: str) -> bool:
    """Whether `name` can be a model: lower-case letters, digits and hyphens; so it is safe as a folder and in a URL."""
    return NAME.fullmatch(name) is not None


def describe_range(field: InputField) -> dict[str, Any]:
    """The training range as members of a JSON schema; empty where training saw none."""
    if field.minimum is None or field.maximum is None:
        return {}
    return {"x-training-minimum": field.minimum, "x-training-maximum": field.maximum}
