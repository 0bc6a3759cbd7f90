"""The real server in production: what nobody signed is not loaded, and what is loaded stays what it was."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import ROOT, TRIED, Server, clean_environment, free_port, running_server
from tests.support.signing import Evil, make_key, sign
from tests.support.tokens import SECRET
from tests.support.versions import HERE, write_classifier, write_version

PRODUCTION = {
    "ENVIRONMENT": "production",
    "AUTH_MODE": "jwt",
    "JWT_SECRET": SECRET,
    "DEFAULT_MODEL": "toy",
}


def _states(server: Server, status: int) -> dict[str, str]:
    models = server.wait_for("/health/ready", status).json()["models"]
    return {model["model"]: model.get("reason", model["state"]) for model in models}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_production_serves_what_is_signed_and_says_what_is_not(tmp_path: Path, workers: str) -> None:
    """An evil artefact with a good digest is not unpickled; who runs the service sees why, and what to do."""
    root, keys = tmp_path / "models", tmp_path / "keys"
    write_classifier(root)
    write_classifier(root, name="strange")
    write_version(root, Evil(tmp_path / "canary"), name="evil")
    sign(root, make_key(keys))
    sign(root, make_key(tmp_path / "strangers", "mallory"), "strange")
    settings = {**PRODUCTION, "MODEL_KEYS_DIR": str(keys), "WORKERS": workers, **TRIED}
    with running_server(root, tmp_path / "server/log", settings) as server:
        assert _states(server, 200) == {"toy": "serving", "strange": "unknown_key", "evil": "unsigned"}
        refused = server.wait_for_event("model_refused", model="evil")
        assert refused["reason"] == "unsigned"
        assert "python -m app models sign" in refused["detail"]
    assert not (tmp_path / "canary").exists()


def test_production_without_keys_starts_and_serves_nothing(tmp_path: Path) -> None:
    """It is up and not ready, with the reason for each model."""
    write_classifier(tmp_path / "models")
    with running_server(tmp_path / "models", tmp_path / "server/log", PRODUCTION, wait=False) as server:
        server.wait_for_output("(models_loaded)")
        assert _states(server, 503) == {"toy": "unsigned"}
        assert server.wait_for("/health/live", 200).json() == {"status": "live"}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_signatures_that_are_required_by_name_need_a_key_to_start(tmp_path: Path, workers: str) -> None:
    """One line says which setting, and the exit code is 1."""
    settings = {"MODEL_SIGNATURES": "require", "MODEL_KEYS_DIR": str(tmp_path), "WORKERS": workers}
    places = {"DATABASE_URL": f"sqlite:///{tmp_path}/db", "JWT_KEYS_DIR": f"{tmp_path}/jwt", "PORT": str(free_port())}
    ended = subprocess.run(
        [sys.executable, "-m", "app", "serve"],
        cwd=ROOT,
        env=clean_environment(**settings, **places),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1, ended.stdout
    assert ended.stderr == (
        "presage: invalid settings\n"
        "  MODEL_SIGNATURES: require needs the public key of a signer (NAME.pub) in MODEL_KEYS_DIR\n"
    )


def test_a_file_that_is_rewritten_while_it_is_served_changes_nothing(tmp_path: Path) -> None:
    """In its place, byte for byte: the live model answers as it did."""
    write_classifier(tmp_path / "models")
    settings = {"DEFAULT_MODEL": "toy"}
    with running_server(tmp_path / "models", tmp_path / "server/log", settings) as server, server.client() as client:
        question = {"inputs": {"x": 3.0}}
        before = client.post("/v2/predict/toy", json=question).json()["probabilities"]
        artefact = tmp_path / "models/toy/1/model.joblib"
        with artefact.open("r+b") as stream:
            stream.write(bytes(artefact.stat().st_size))
        for _ in range(100):
            assert client.post("/v2/predict/toy", json=question).json()["probabilities"] == before


def test_the_catalog_says_with_what_a_version_was_fitted(tmp_path: Path) -> None:
    """Of other libraries, and proven: the log says so, too."""
    versions = HERE.model_copy(update={"scikit_learn": "1.0.2"})
    write_classifier(tmp_path / "models", versions=versions)
    settings = {"DEFAULT_MODEL": "toy", "MODEL_LIBRARIES": "proven", "LOG_FORMAT": "json"}
    with running_server(tmp_path / "models", tmp_path / "server/log", settings) as server, server.client() as client:
        (version,) = client.get("/v2/catalog/toy").json()["versions"]
        assert version["fitted_with"] == versions.model_dump()
        (difference,) = server.wait_for_event("libraries_proven", model="toy")["differences"]
        assert difference == f"fitted with scikit-learn 1.0.2, and this is {HERE.scikit_learn}"
