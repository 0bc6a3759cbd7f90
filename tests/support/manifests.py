"""Manifests by hand, for tests that need no estimator."""

from datetime import UTC, datetime
from typing import Any

from app.manifest import (
    Artefact,
    Card,
    CategoryProfile,
    Container,
    Golden,
    GoldenRow,
    InputField,
    Manifest,
    Origin,
    Outputs,
    Profile,
    Training,
    Versions,
)

NUMBER = InputField(
    name="sepal length (cm)", dtype="float", minimum=4.3, maximum=7.9, description="Length.", example=5.1
)
COUNT = InputField(name="rooms", dtype="integer", minimum=1, maximum=9)
KIND = InputField(name="kind", dtype="category", categories=("house", "flat"))
FLAG = InputField(name="new", dtype="boolean")
GAP = InputField(name="age", dtype="float", missing="allow")
TEXT = InputField(name="text", dtype="text", max_length=20)


def make_manifest(*fields: InputField, container: Container = "matrix", **changes: Any) -> Manifest:
    """A manifest of a two-class model with these fields; its golden row and profile are empty of meaning."""
    document: dict[str, Any] = {
        "name": "toy",
        "version": 1,
        "task": "classification",
        "fields": fields,
        "outputs": Outputs(target="answer", labels=("no", "yes"), probabilities=True),
        "artefact": Artefact(sha256="0" * 64, size=1, container=container),
        "versions": Versions(python="3", scikit_learn="1", numpy="2", scipy="1", joblib="1"),
        "training": Training(data="none", rows=1, sha256="0" * 64),
        "golden": Golden(rows=(GoldenRow(inputs={}, prediction="no"),)),
        "profile": Profile(inputs={}, prediction=CategoryProfile(count=0, missing=0, counts={})),
        "card": Card(description="A toy."),
        "origin": Origin(created_at=datetime(2026, 1, 1, tzinfo=UTC), code="test", recipe="test"),
        **changes,
    }
    return Manifest(**document)
