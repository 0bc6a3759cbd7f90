"""The manifest is a contract: what contradicts itself, or holds what nobody knows, is refused."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from app.manifest import is_alias, is_model_name, parse_manifest
from tests.support.manifests import KIND, NUMBER, TEXT, make_manifest


def test_a_manifest_survives_its_own_json() -> None:
    """What is written is what is read."""
    manifest = make_manifest(NUMBER, KIND)
    assert parse_manifest(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 2),
        (("name",), "../evil"),
        (("name",), "Iris"),
        (("version",), 0),
        (("version",), "1"),
        (("task",), "clustering"),
        (("fields",), []),
        (("surprise",), 1),
        (("artefact", "sha256"), "abc"),
        (("artefact", "file"), "../model.joblib"),
        (("artefact", "container"), "texts"),
        (("golden", "rows"), []),
        (("golden", "tolerance"), 0.5),
        (("outputs", "labels"), []),
        (("outputs", "labels"), [1, "1"]),
        (("fields", 0, "minimum"), "low"),
        (("fields", 0, "dtype"), "category"),
        (("fields", 1, "name"), NUMBER.name),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(path: tuple[Any, ...], value: Any) -> None:
    """Each of these is one change to a good document."""
    document = json.loads(make_manifest(NUMBER, KIND).to_json())
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        parse_manifest(json.dumps(document))


def test_nan_is_no_number_of_a_manifest() -> None:
    """A range with NaN in it would be no range."""
    document = make_manifest(NUMBER).to_json().replace(b"4.3", b"NaN")
    with pytest.raises(ValidationError):
        parse_manifest(document)


def test_the_container_of_one_text_is_texts() -> None:
    """A list of strings is for exactly one text field."""
    with pytest.raises(ValidationError, match="exactly one text field"):
        make_manifest(TEXT, container="matrix")


@pytest.mark.parametrize("name", ["iris", "breast-cancer", "a", "0", "a" * 64])
def test_a_model_name_is_safe_in_paths_and_urls(name: str) -> None:
    """Lower-case letters, digits, and hyphens inside."""
    assert is_model_name(name)


@pytest.mark.parametrize("name", ["", "-a", "a-", "a_b", "A", "a.b", "..", "a/b", "é", "a\n", "a" * 65])
def test_anything_else_is_no_model_name(name: str) -> None:
    """Nothing that could mean something to a file system."""
    assert not is_model_name(name)


def test_an_alias_is_never_a_number() -> None:
    """So that `?version=` means one thing."""
    assert is_alias("v1")
    assert not is_alias("1")
    assert not is_alias("1v")
