"""MLflow's folders: what is read of an `MLmodel`, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.errors import PublishRefused
from app.registry.mlmodel import Input, read_mlmodel

FLAVOR = {"pickled_model": "model.skops", "serialization_format": "skops", "sklearn_version": "1.9.1"}


def _folder(root: Path, *, inputs: Any = None, flavor: Any = FLAVOR, **more: Any) -> Path:
    document = {"flavors": {"sklearn": flavor, "python_function": {}}, "run_id": "r1", **more}
    if inputs is not None:
        document["signature"] = {"inputs": json.dumps(inputs)}
    (root / "MLmodel").write_text(yaml.safe_dump(document))
    return root


def test_what_is_read_of_a_model(tmp_path: Path) -> None:
    """Where the estimator is, with which library it was fitted, what goes in, and rows of it."""
    inputs = [{"type": "double", "name": "a"}, {"type": "string", "name": "b", "required": False}]
    info = {"artifact_path": "example.json", "type": "dataframe", "pandas_orient": "split"}
    (tmp_path / "example.json").write_text('{"columns": ["a", "b"], "data": [[1.5, "x"], [2.5, null]]}')
    logged = read_mlmodel(_folder(tmp_path, inputs=inputs, saved_input_example_info=info))
    assert (logged.estimator, logged.skops) == (tmp_path / "model.skops", True)
    assert (logged.scikit_learn, logged.run_id) == ("1.9.1", "r1")
    assert logged.inputs == (Input("a", "float"), Input("b", "text", required=False))
    assert logged.example == ({"a": 1.5, "b": "x"}, {"a": 2.5, "b": None})


def test_a_tensor_has_inputs_without_names(tmp_path: Path) -> None:
    """As many as its last dimension."""
    tensor = [{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 3]}}]
    assert read_mlmodel(_folder(tmp_path, inputs=tensor)).inputs == (Input("", "float"),) * 3


@pytest.mark.parametrize("content", [["good", "bad"], [[1, 2]], [{"a": 1}]])
def test_an_example_in_another_form(tmp_path: Path, content: list[Any]) -> None:
    """Texts, rows and objects are taken as they are."""
    (tmp_path / "example.json").write_text(json.dumps(content))
    folder = _folder(tmp_path, saved_input_example_info={"artifact_path": "example.json"})
    assert read_mlmodel(folder).example == tuple(content)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"flavor": {**FLAVOR, "pickled_model": "../../etc/passwd"}}, "which nobody here reads"),
        ({"flavor": {**FLAVOR, "serialization_format": "dill"}}, "'dill', which nobody here reads"),
        ({"inputs": [{"type": "datetime", "name": "when"}]}, "the input when is of MLflow's type datetime"),
        ({"inputs": {"a": 1}}, "nobody understands its signature"),
        ({"flavors": {"xgboost": {}, "python_function": {}}}, "it has python_function, xgboost"),
        ({"flavors": [1]}, "flavors is not what it should be"),
        ({"saved_input_example_info": {"artifact_path": "none.json"}}, "none.json cannot be read"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """In a sentence that names it."""
    with pytest.raises(PublishRefused, match=said):
        read_mlmodel(_folder(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b"!!python/object/apply:os.system [exit 1]"])
def test_what_is_no_description(tmp_path: Path, content: bytes) -> None:
    """YAML that would build objects included."""
    (tmp_path / "MLmodel").write_bytes(content)
    with pytest.raises(PublishRefused, match="MLmodel is not"):
        read_mlmodel(tmp_path)
