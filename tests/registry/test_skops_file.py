"""skops files: data that names types, of which only trusted ones are made, and never more of it than there is."""

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn.cluster import Birch
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from app.errors import PublishRefused, VersionRefused
from app.registry.artefact import read_estimator
from app.registry.skops_file import dump_skops
from app.registry.trust import Trust
from tests.support.estimators import Brittle
from tests.support.server import ROOT, clean_environment

X = np.arange(40.0).reshape(-1, 2)
Y = np.arange(20) > 9


def _load(raw: bytes, *types: str) -> Any:
    return read_estimator(raw, "model.skops", Trust(types=types))


def _refusal(raw: bytes) -> tuple[str, str]:
    with pytest.raises(VersionRefused) as caught:
        _load(raw)
    return caught.value.refusal.reason, caught.value.refusal.detail


def _rewritten(raw: bytes, change: Callable[[dict[str, Any]], None], **archive: Any) -> bytes:
    """The file with another schema."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as before, zipfile.ZipFile(buffer, "w", **archive) as after:
        for name in before.namelist():
            content = before.read(name)
            if name == "schema.json":
                schema = json.loads(content)
                change(schema)
                content = json.dumps(schema).encode()
            after.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(),
        RandomForestClassifier(n_estimators=3, random_state=0),
        HistGradientBoostingRegressor(max_iter=3, min_samples_leaf=2),
        make_pipeline(FunctionTransformer(np.sqrt), DummyClassifier()),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_an_estimator_comes_back_as_it_was(estimator: Any) -> None:
    """Linear models, trees of both kinds, and numpy's own functions."""
    estimator.fit(X, Y)
    assert (_load(dump_skops(estimator)).predict(X) == estimator.predict(X)).all()


def test_a_type_of_ones_own_is_refused_by_name_until_it_is_trusted() -> None:
    """And it is the setting that trusts it, whatever the file says."""
    raw = dump_skops(Brittle().fit(X, Y))
    reason, detail = _refusal(raw)
    assert reason == "unknown_code"
    assert "tests.support.estimators.Brittle" in detail
    assert "SKOPS_TRUSTED_TYPES" in detail
    assert isinstance(_load(raw, "tests.support.estimators.Brittle"), Brittle)


@pytest.mark.parametrize(
    "evil",
    [
        {"__class__": "system", "__module__": "os", "__loader__": "FunctionNode"},
        {"__class__": "Popen", "__module__": "subprocess", "__loader__": "TypeNode"},
        {"__class__": "Popen", "__module__": "subprocess", "__loader__": "ObjectNode", "content": None},
        {"__class__": "savetxt", "__module__": "numpy", "__loader__": "FunctionNode"},
    ],
)
def test_what_could_run_code_is_refused_by_name(evil: dict[str, Any]) -> None:
    """A function or class that nobody trusts, put where a parameter should be; nothing of it is imported."""
    raw = _rewritten(
        dump_skops(LogisticRegression().fit(X, Y)), lambda schema: schema["content"]["content"].update(C=evil)
    )
    reason, detail = _refusal(raw)
    assert reason == "unknown_code"
    assert f"{evil['__module__']}.{evil['__class__']}" in detail


@pytest.mark.parametrize(
    "raw",
    [b"", b"PK", b"\x80\x05.", bytes(1000)],
)
def test_what_is_no_skops_file_is_refused(raw: bytes) -> None:
    """Nothing, too little, a pickle, zeros."""
    assert _refusal(raw)[0] == "artefact_unreadable"


def test_a_damaged_skops_file_is_refused() -> None:
    """One that is cut off, one without its schema's end, and one whose array is not what its checksum says."""
    raw = dump_skops(LogisticRegression().fit(X, Y))
    assert _refusal(raw[:-30])[0] == "artefact_unreadable"
    assert _refusal(raw.replace(b"__loader__", b"__LOADER__"))[0] == "artefact_unreadable"
    assert _refusal(raw.replace(b"NUMPY", b"numpy", 1))[0] == "artefact_unreadable"


def test_a_compressed_file_is_refused() -> None:
    """A kilobyte could be a gigabyte."""
    raw = _rewritten(dump_skops(LogisticRegression().fit(X, Y)), lambda _: None, compression=zipfile.ZIP_DEFLATED)
    reason, detail = _refusal(raw)
    assert reason == "artefact_unreadable"
    assert "compressed" in detail


def test_a_sparse_matrix_that_would_become_much_larger_is_refused() -> None:
    """What scipy compresses within the file counts as what it becomes; as much as a model really needs will do."""
    small = KNeighborsClassifier(1).fit(scipy.sparse.csr_matrix(X), Y)
    assert (_load(dump_skops(small), "scipy.sparse._csr.csr_matrix").predict(X) == Y).all()
    empty = scipy.sparse.csr_matrix((20_000_000, 2))
    reason, detail = _refusal(dump_skops(KNeighborsClassifier(1).set_params(p=empty)))
    assert reason == "artefact_unreadable"
    assert "much larger" in detail


def test_an_array_that_is_read_again_and_again_is_refused() -> None:
    """One member of the file, as the value of a hundred parameters."""

    def repeat(schema: dict[str, Any]) -> None:
        attributes = schema["content"]["content"]
        attributes.update({f"p{i}": {**attributes["coef_"], "__id__": 10**15 + i} for i in range(100)})

    raw = _rewritten(dump_skops(LogisticRegression().fit(np.zeros((4, 5000)), [0, 1, 0, 1])), repeat)
    assert _refusal(raw) == ("artefact_unreadable", "the skops file would become much larger than it is")


@pytest.mark.timeout(20)
def test_a_few_lines_that_stand_for_billions_are_refused() -> None:
    """Sixty lists, each of which is twice the next one: skops would walk every path."""

    def nest(schema: dict[str, Any]) -> None:
        kind = {"__class__": "list", "__module__": "builtins", "__loader__": "ListNode"}
        node: dict[str, Any] = {**kind, "content": [], "__id__": 1}
        for number in range(2, 60):
            node = {**kind, "content": [node, {**kind, "__id__": node["__id__"]}], "__id__": number}
        schema["content"]["content"].update(C=node)

    raw = _rewritten(dump_skops(LogisticRegression().fit(X, Y)), nest)
    assert _refusal(raw) == ("artefact_unreadable", "the skops file has two objects under one id")


def test_an_estimator_that_skops_cannot_write_is_not_published() -> None:
    """With what it says about it."""
    with pytest.raises(PublishRefused, match=r"cannot be saved by skops: UnsupportedTypeException: .*Birch"):
        dump_skops(Birch())


def test_without_skops_its_files_are_refused_and_say_what_to_install(tmp_path: Path) -> None:
    """It is no requirement of the service."""
    (tmp_path / "model.skops").write_bytes(dump_skops(DummyClassifier().fit(X, Y)))
    program = f"""
import sys
sys.modules["skops"] = sys.modules["skops.io"] = None
from pathlib import Path
from app.registry.artefact import read_estimator
from app.registry.trust import Trust
read_estimator(Path({str(tmp_path / "model.skops")!r}).read_bytes(), "model.skops", Trust())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert "VersionRefused: skops_missing: pip install skops" in ended.stderr
