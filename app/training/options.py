"""What `publish` may be told beyond the model itself."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from app.config import ModelSettings, SigningSettings
from app.manifest import Evaluation, InputField, Label
from app.pipelines.base import RawOutput
from app.registry.errands import Say, silent
from app.registry.trust import Trust


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything has a default that is right for a first try.

    Inputs and outputs: `fields` say more about columns than X shows (a description, a category that X lacks);
    `field_names` name the columns of a matrix; `labels` rename the estimator's classes, in their order; `target` is
    what is predicted, in `unit`.

    For people: `intended_use`, `limitations`, `data` (what X is), `data_sha256` (of its file, otherwise of X and y),
    `evaluations`, `recipe`.

    `held_out` are answers for X by estimators that were not fitted on the row in question, as cross-validation makes
    them: a reference for drift that is not too sure of itself, as a model is on its own training rows.

    How it is kept: `format` is `joblib`, or `skops` for a file that is data and no program; `signing_key` is the
    private key that signs the version (by default `MODEL_SIGNING_KEY`).

    Where: `aliases` to point at the new version (the first version of a model is its `champion` anyway), `models_dir`
    and what an artefact may contain: `modules` and `types` (by default `MODELS_DIR`, `MODEL_MODULES` and
    `SKOPS_TRUSTED_TYPES`).

    `say` is told of each step before it is taken.
    """

    fields: tuple[InputField, ...] = ()
    field_names: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    target: str = ""
    unit: str = ""
    intended_use: str = ""
    limitations: str = ""
    data: str = "not described"
    data_sha256: str | None = None
    evaluations: tuple[Evaluation, ...] = ()
    recipe: str = "app.training.publish"
    held_out: RawOutput | None = None
    format: Literal["joblib", "skops"] = "joblib"
    signing_key: Path | None = field(default_factory=lambda: SigningSettings().model_signing_key)
    aliases: tuple[str, ...] = ()
    models_dir: Path = field(default_factory=lambda: ModelSettings().models_dir)
    modules: tuple[str, ...] = field(default_factory=lambda: ModelSettings().model_modules)
    types: tuple[str, ...] = field(default_factory=lambda: ModelSettings().skops_trusted_types)
    say: Say = silent

    @property
    def trust(self) -> Trust:
        """What a version that is made here may contain; it needs no signature to be proven."""
        return Trust(self.modules, self.types)
