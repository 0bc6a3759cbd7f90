"""Behind a proxy that publishes the service under a prefix, whether it strips the prefix or not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.demo import MODULES
from tests.support.server import Server, running_server


@pytest.fixture(scope="module")
def prefixed(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is published under /presage."""
    environment = {"ROOT_PATH": "/presage", "MODEL_MODULES": MODULES, "LOG_FORMAT": "json"}
    with running_server(models_dir, tmp_path_factory.mktemp("prefixed") / "log", environment) as server:
        yield server


@pytest.mark.parametrize("prefix", ["", "/presage"])
def test_everything_is_found_with_and_without_the_prefix(prefixed: Server, prefix: str) -> None:
    """Hot routes, cold routes, the docs page and its files."""
    with prefixed.client() as client:
        answer = client.post(f"{prefix}/predict", json={"text": "I love this"})
        assert answer.json() == {"sentiment": "positive"}
        assert client.post(f"{prefix}/v2/predict/double", json={"inputs": {"x": 1}}).status_code == 200
        for path in ("/health/ready", "/v2/catalog/iris", "/metrics", "/docs", "/docs/assets/swagger-ui.css"):
            assert client.get(prefix + path).status_code == 200, path
        assert client.get(f"{prefix}/nothing").status_code == 404
        document = client.get(f"{prefix}/openapi.json").json()
        assert document["servers"] == [{"url": "/presage"}]
        assert '"/presage/docs/assets/swagger-ui-bundle.js"' in client.get(f"{prefix}/docs").text
