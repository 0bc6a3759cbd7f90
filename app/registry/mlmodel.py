"""MLflow's format of a model: a folder with a file `MLmodel`, which says where the estimator is and what goes in.

Only that is believed of it. What the estimator may contain is for our settings to say, not for the file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import PublishRefused
from app.manifest import Dtype

DESCRIPTION_FILE = "MLmodel"
_FORMATS = ("skops", "pickle", "cloudpickle")
# MLflow's types of columns → ours; others have no form in JSON that a caller could send.
_DTYPES: Mapping[str, Dtype] = {
    "boolean": "boolean",
    "integer": "integer",
    "long": "integer",
    "float": "float",
    "double": "float",
    "string": "text",
}
_LARGEST_DESCRIPTION = 1 << 20
_LARGEST_EXAMPLE = 64 << 20


@dataclass(frozen=True)
class Input:
    """One input of the signature; without a name where there is only one."""

    name: str
    dtype: Dtype
    required: bool = True


@dataclass(frozen=True)
class LoggedModel:
    """What an `MLmodel` says that matters here. `example` are its rows: texts, lists or objects; none without one."""

    estimator: Path
    skops: bool
    scikit_learn: str
    inputs: tuple[Input, ...]
    example: tuple[Any, ...]
    run_id: str


def read_mlmodel(folder: Path) -> LoggedModel:
    """Raises PublishRefused when the folder is not a scikit-learn model of MLflow's, or has inputs that JSON lacks."""
    document = _document(folder / DESCRIPTION_FILE)
    flavors = _mapping(document, "flavors")
    if "sklearn" not in flavors:
        found = ", ".join(sorted(map(str, flavors))) or "none"
        raise PublishRefused(f"{folder.name}: only models of the flavor sklearn can be published, and it has {found}")
    flavor = _mapping(flavors, "sklearn")
    file, form = str(flavor.get("pickled_model")), flavor.get("serialization_format")
    if form not in _FORMATS or Path(file).name != file:
        raise PublishRefused(
            f"{folder.name}: the estimator is {file!r} in the format {form!r}, which nobody here reads"
        )
    return LoggedModel(
        estimator=folder / file,
        skops=form == "skops",
        scikit_learn=str(flavor.get("sklearn_version")),
        inputs=_inputs(_mapping(document, "signature").get("inputs")),
        example=_example(folder, _mapping(document, "saved_input_example_info")),
        run_id=str(document.get("run_id") or ""),
    )


def _document(path: Path) -> Mapping[str, Any]:
    try:
        import yaml  # noqa: PLC0415 -- an extra
    except ModuleNotFoundError:
        raise PublishRefused("pip install PyYAML: it is no requirement of the service (the extra mlflow)") from None
    try:
        document = yaml.safe_load(_text(path, _LARGEST_DESCRIPTION))
    except yaml.YAMLError:
        document = None
    if not isinstance(document, Mapping):
        raise PublishRefused(f"{path} is not a description of a model")
    return document


def _text(path: Path, most: int) -> str:
    try:
        if path.stat().st_size > most:
            raise PublishRefused(f"{path} is larger than {most >> 20} MiB")
        return path.read_text("utf-8")
    except OSError as error:
        raise PublishRefused(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PublishRefused(f"{path} is not UTF-8") from None


def _mapping(document: Mapping[str, Any], member: str) -> Mapping[str, Any]:
    found = document.get(member) or {}
    if not isinstance(found, Mapping):
        raise PublishRefused(f"{DESCRIPTION_FILE}: {member} is not what it should be")
    return found


def _inputs(signature: Any) -> tuple[Input, ...]:
    """The columns of a signature; those of a tensor have no names."""
    if signature is None:
        return ()
    try:
        return tuple(each for column in json.loads(signature) for each in _columns(column))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise PublishRefused(f"{DESCRIPTION_FILE}: nobody understands its signature") from None


def _columns(column: Mapping[str, Any]) -> list[Input]:
    name, kind = str(column.get("name", "")), str(column["type"])
    if kind == "tensor":
        *_, width = column["tensor-spec"]["shape"]
        dtype: Dtype = "float" if str(column["tensor-spec"]["dtype"]).startswith(("float", "int", "uint")) else "text"
        return [Input("", dtype) for _ in range(max(1, width))]
    if kind not in _DTYPES:
        raise PublishRefused(
            f"the input {name or 'without a name'} is of MLflow's type {kind}, which JSON has no form for"
        )
    return [Input(name, _DTYPES[kind], bool(column.get("required", True)))]


def _example(folder: Path, info: Mapping[str, Any]) -> tuple[Any, ...]:
    """The rows of the input example, however MLflow has written them."""
    file = str(info.get("artifact_path") or "")
    if not file or Path(file).name != file:
        return ()
    try:
        content = json.loads(_text(folder / file, _LARGEST_EXAMPLE))
    except ValueError:
        raise PublishRefused(f"{file}: the input example is not JSON") from None
    if isinstance(content, Mapping) and isinstance(columns := content.get("columns"), list):
        return tuple(dict(zip(columns, row, strict=True)) for row in content.get("data", ()))
    if isinstance(content, Mapping):
        return (content,)
    return tuple(content) if isinstance(content, Sequence) and not isinstance(content, str) else ()
