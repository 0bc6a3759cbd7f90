"""BentoML: a service with a batchable endpoint, which takes a list so that requests can be joined."""

import os

import bentoml
import joblib


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Sentiment:
    """`{"texts": ["…"]}` → `["…"]`: a batchable endpoint's own form of one text."""

    def __init__(self) -> None:
        self.model = joblib.load(os.environ["MODEL"])

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    def predict(self, texts: list[str]) -> list[str]:
        """One call of the pipeline for the batch."""
        labels: list[str] = self.model.predict(texts).tolist()
        return labels
