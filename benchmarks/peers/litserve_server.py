"""LitServe: a LitAPI with batching, one API server and one inference worker."""

import os
from typing import Any

import joblib
import litserve


class Sentiment(litserve.LitAPI):
    """`{"text": …}` → `{"sentiment": …}`."""

    def setup(self, device: str) -> None:  # noqa: ARG002 -- LitServe's signature
        """Load the pipeline in the worker."""
        self.model = joblib.load(os.environ["MODEL"])

    def decode_request(self, request: dict[str, str]) -> str:
        """The text."""
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        """The pipeline takes a list."""
        return inputs

    def predict(self, texts: list[str]) -> list[str]:
        """One call of the pipeline for the batch."""
        labels: list[str] = self.model.predict(texts).tolist()
        return labels

    def unbatch(self, output: list[str]) -> list[str]:
        """A label for each request."""
        return output

    def encode_response(self, output: str) -> dict[str, Any]:
        """The answer."""
        return {"sentiment": output}


def main() -> None:
    """Serve on PORT at /predict."""
    api = Sentiment(max_batch_size=64, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
