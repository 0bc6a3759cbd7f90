"""The demo models as skops files, beside the same estimators as joblib files, behind one server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.training.options import Options
from app.training.publish import publish
from app.training.recipe import Recipe
from app.training.recipes import RECIPES
from tests.support.server import Server, running_server

VERSIONS = [(name, version) for name, recipe in RECIPES.items() for version in recipe.versions]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with every demo recipe twice, of some hundred rows: as `iris`, and as `iris-skops`."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, version in VERSIONS:
        _publish_twice(folder / "models", RECIPES[name], version)
    with running_server(folder / "models", folder / "server/log") as server:
        yield server


def _publish_twice(root: Path, recipe: Recipe, version: int) -> None:
    X, y = _some(recipe)
    estimator = recipe.versions[version].build().fit(X, y)
    here: Any = {"fields": recipe.fields, "models_dir": root, "modules": (), "aliases": (f"n{version}",)}
    for name, options in ((recipe.name, Options(**here)), (f"{recipe.name}-skops", Options(**here, format="skops"))):
        publish(name, estimator, X, y, task=recipe.task, version=version, options=options)


def _some(recipe: Recipe) -> tuple[Any, Any]:
    data = recipe.demo()
    every = max(1, len(data.y) // 300)
    return data.X[::every], data.y[::every]


@pytest.mark.parametrize(("name", "version"), VERSIONS)
def test_a_skops_file_answers_as_the_joblib_file_does(pairs: Server, name: str, version: int) -> None:
    """To nine digits, for the rows of data that the model was made of."""
    recipe = RECIPES[name]
    fields = [field.name for field in recipe.fields]
    taken, _ = _some(recipe)
    rows: list[dict[str, Any]] = [
        {"text": row} if isinstance(row, str) else dict(zip(fields, map(float, row), strict=True)) for row in taken
    ]
    for row in rows:
        row.update(
            {field.name: int(row[field.name]) for field in recipe.fields if field.dtype in {"category", "integer"}}
        )
    answers = []
    with pairs.client() as client:
        for model in (name, f"{name}-skops"):
            answer = client.post(f"/v2/batch/{model}?version={version}", json={"inputs": rows})
            assert answer.status_code == 200, answer.text
            answers.append([(one["prediction"], one.get("probabilities")) for one in answer.json()["results"]])
    joblib, skops = answers
    assert len(skops) == len(rows)
    for one, other in zip(joblib, skops, strict=True):
        assert other[0] == (pytest.approx(one[0], rel=1e-9) if isinstance(one[0], float) else one[0])
        assert (other[1] is None) if one[1] is None else other[1] == pytest.approx(one[1], abs=1e-9)
