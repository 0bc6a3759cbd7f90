"""skops files: an estimator as data, a zip of arrays and a schema that says which types hold them.

skops builds objects of types that are trusted, and runs no code that the file brings along. Trusted are skops's own
list, those that `SKOPS_TRUSTED_TYPES` names, and what scikit-learn's estimators hold inside and skops leaves out. What
the file itself asks for is never asked. A small file must also not become a large one: nothing in it is compressed, and
what it says twice it must write twice.
"""

import io
import json
from collections.abc import Iterator
from typing import Any
from zipfile import ZIP_STORED, ZipFile

from app.errors import PublishRefused, VersionRefused

# skops leaves trees out since their arrays are indexed without checks: a forged one may crash the process, though it
# can name no code. Forged files are what signatures are for.
_INSIDE_ESTIMATORS = (
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
)
_MISSING = "pip install skops: it is no requirement of the service (pyproject.toml, the extra skops)"
# A sparse matrix is a zip of its own in the zip, which scipy compresses.
_MOST_INFLATION = 20
_ALWAYS_INFLATED = 64 << 20


def load_skops(raw: bytes, types: tuple[str, ...]) -> Any:
    """The estimator in a skops file.

    Raises VersionRefused: `skops_missing`, `unknown_code` naming the types that are not trusted, `artefact_unreadable`
    for what is larger than it looks; and whatever skops does for a file that is broken.
    """
    try:
        from skops.io import get_untrusted_types, loads  # noqa: PLC0415 -- an extra
    except ModuleNotFoundError:
        raise VersionRefused("skops_missing", _MISSING) from None
    _check_size(raw)
    trusted = {*_INSIDE_ESTIMATORS, *types}
    unknown = sorted(set(get_untrusted_types(data=raw)) - trusted)
    if unknown:
        names = ", ".join(unknown)
        raise VersionRefused(
            "unknown_code", f"it contains {names}; if you trust them, name them in SKOPS_TRUSTED_TYPES"
        )
    return loads(raw, trusted=sorted(trusted))


def dump_skops(estimator: Any) -> bytes:
    """An estimator as a skops file. Raises PublishRefused without skops, and for what it cannot write."""
    try:
        from skops.io import dumps  # noqa: PLC0415 -- an extra
    except ModuleNotFoundError:
        raise PublishRefused(_MISSING) from None
    try:
        raw: bytes = dumps(estimator)
    except Exception as error:  # skops reads the state of every object inside
        raise PublishRefused(f"the estimator cannot be saved by skops: {type(error).__name__}: {error}") from error
    return raw


def _check_size(raw: bytes) -> None:
    """Refuse a file that would need more memory, or more time, than its size lets expect."""
    with ZipFile(io.BytesIO(raw)) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if any(member.compress_type != ZIP_STORED for member in members.values()):
            raise VersionRefused("artefact_unreadable", "a member of the skops file is compressed; save it without")
        inflated = sum(_inflated(archive, name) for name in members if name.endswith(".npz"))
        schema = json.loads(archive.read("schema.json"))
    read = sum(members[file].file_size for file in _files_read(schema))
    if read > len(raw) or inflated > max(_ALWAYS_INFLATED, _MOST_INFLATION * len(raw)):
        raise VersionRefused("artefact_unreadable", "the skops file would become much larger than it is")


def _inflated(archive: ZipFile, name: str) -> int:
    with ZipFile(io.BytesIO(archive.read(name))) as inner:
        return sum(member.file_size for member in inner.infolist())


def _files_read(schema: Any) -> Iterator[str]:
    """Every member that skops will read, as often as it will.

    skops takes what it has seen under an id from memory. Its own files write it out again all the same; one that only
    points there could let a few lines stand for billions.
    """
    seen: dict[Any, Any] = {}
    stack = [schema]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            stack.extend(value.values())
            known = seen.setdefault(value["__id__"], value) if value.get("__id__") else value
            if known is not value and known != value and _without_ids(known) != _without_ids(value):
                raise VersionRefused("artefact_unreadable", "the skops file has two objects under one id")
            if known is value and isinstance(value.get("file"), str):
                yield value["file"]


def _without_ids(value: Any) -> Any:
    """The same without ids, which differ for what was made while an object was written."""
    if isinstance(value, list):
        return [_without_ids(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_ids(item) for key, item in value.items() if key != "__id__"}
    return value
