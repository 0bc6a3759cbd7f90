"""mosec: one worker with dynamic batching behind its Rust front, as its documentation shows for a CPU model."""

import os
from typing import Any

import joblib
from mosec import Runtime, Server, Worker


class Sentiment(Worker):
    """`{"text": …}` → `{"sentiment": …}`, for as many requests as came together."""

    def __init__(self) -> None:
        self.model = joblib.load(os.environ["MODEL"])

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, str]]:
        """One call of the pipeline for the batch."""
        return [{"sentiment": label} for label in self.model.predict([row["text"] for row in data]).tolist()]


class Diagnosis(Worker):
    """`{"features": [thirty numbers]}` → `{"diagnosis": …}`."""

    def __init__(self) -> None:
        self.model = joblib.load(os.environ["MODEL"])

    def forward(self, data: dict[str, Any]) -> dict[str, str]:
        """One call of the forest for one request: without batching mosec hands over no list."""
        return {"diagnosis": self.model.predict([data["features"]]).tolist()[0]}


def main() -> None:
    """Serve on MOSEC_PORT at /predict."""
    server = Server()
    if os.environ["TASK"] == "text":
        # Of 8 to 128 a batch and 1 to 10 ms of waiting this was the fastest under 64 connections.
        stage = Runtime(Sentiment, num=1, max_batch_size=64, max_wait_time=1)
    else:
        # Here one caller waits for one answer: a batch of one leaves at once.
        stage = Runtime(Diagnosis, num=1, max_batch_size=1)
    server.register_runtime({"/predict": [stage]})
    server.run()


if __name__ == "__main__":
    main()
