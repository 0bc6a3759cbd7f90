"""A little of every kind of request, so that every instrument has something to show."""

import json
from pathlib import Path
from typing import Any

import httpx2


def send_traffic(client: httpx2.Client, models: Path) -> None:
    """By each model a prediction and a batch with one bad row; the first contract; three refusals and the pages."""
    for manifest in sorted(models.glob("*/*/manifest.json")):
        inputs, parameters = _golden_inputs(manifest), {"version": manifest.parent.name}
        model = manifest.parents[1].name
        one = client.post(f"/v2/predict/{model}", json={"inputs": inputs}, params=parameters)
        many = client.post(f"/v2/batch/{model}", json={"inputs": [inputs, {}, inputs]}, params=parameters)
        assert (one.status_code, many.status_code) == (200, 200), (one.text, many.text)
        assert many.json()["counts"] == {"succeeded": 2, "failed": 1}
    statuses = [
        client.post("/predict", json={"text": "I love this product"}).status_code,
        client.post("/batch-predict", json={"texts": ["I love it", "I hate it"]}).status_code,
        client.post("/predict", json={"text": 1}).status_code,
        client.post("/v2/predict/absent", json={"inputs": {}}).status_code,
        client.get("/absent").status_code,
        client.get("/v2/catalog").status_code,
    ]
    assert statuses == [200, 200, 422, 404, 404, 200]


def _golden_inputs(manifest: Path) -> dict[str, Any]:
    """A row that is known to be good, from the version itself."""
    inputs: dict[str, Any] = json.loads(manifest.read_text())["golden"]["rows"][0]["inputs"]
    return inputs
