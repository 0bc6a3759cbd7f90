"""`serve`: what the person at the terminal sees, when it works and when it does not."""

import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.manifest import Outputs
from tests.support.demo import MODULES
from tests.support.estimators import Hanging
from tests.support.server import ROOT, clean_environment, free_port, running_server
from tests.support.versions import one_golden, write_version

_CURL = r"^ *(curl .*)$"


def _serve(**environment: str) -> subprocess.CompletedProcess[str]:
    """A start that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "app", "serve"],
        cwd=ROOT,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _as_a_newcomer(**environment: str) -> dict[str, str]:
    """Credentials are asked for, as they are by default, and the log is for people."""
    return {"AUTH_MODE": "jwt", "LOG_FORMAT": "console", **environment}


def test_the_printed_call_works_when_it_is_pasted(models_dir: Path, tmp_path: Path) -> None:
    """The last lines name the address, the docs page, and a curl that carries a token."""
    with running_server(models_dir, tmp_path / "log", _as_a_newcomer(MODEL_MODULES=MODULES)) as server:
        printed = server.wait_for_output(_CURL)
        assert f"docs page          {server.url}/docs" in server.output()
        answer = subprocess.run(shlex.split(printed), capture_output=True, text=True, check=True)
        assert answer.stdout == '{"sentiment":"positive"}'


def test_the_printed_call_fits_the_models_that_there_are(models_dir: Path, tmp_path: Path) -> None:
    """Without the sentiment model it calls the default model with a row of its own."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/iris").symlink_to(models_dir / "iris")
    environment = _as_a_newcomer(DEFAULT_MODEL="iris")
    with running_server(tmp_path / "models", tmp_path / "log", environment) as server:
        printed = server.wait_for_output(_CURL)
        answer = subprocess.run(shlex.split(printed), capture_output=True, text=True, check=True)
        assert '"prediction":"' in answer.stdout


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"PORT": "http"}, "PORT: Input should be a valid integer"),
        ({"PORT": "70000"}, "PORT: Input should be less than or equal to 65535"),
        ({"ENVIRONMENT": "prod"}, "ENVIRONMENT: Input should be 'development' or 'production'"),
        ({"MAX_BATCH_ROWS": "0", "LOG_LEVEL": "loud"}, "LOG_LEVEL: Input should be"),
        ({"MAX_BATCH_ROWS": "0", "LOG_LEVEL": "loud"}, "MAX_BATCH_ROWS: Input should be"),
        ({"ENVIRONMENT": "production", "AUTH_MODE": "none"}, "AUTH_MODE=none is refused in production"),
        ({"ENVIRONMENT": "production", "JWT_KEYS_DIR": "/nonexistent"}, "JWT_SECRET: is required in production"),
        ({"ENVIRONMENT": "production", "JWT_SECRET": "s3cr3t"}, "JWT_SECRET: must have at least 32 random characters"),
        ({"AUTH_MODE": "platform", "PLATFORM_HEADER": "X-User"}, "AUTH_MODE=platform needs TRUSTED_PROXIES"),
        ({"TRUSTED_PROXIES": "proxy.internal"}, "TRUSTED_PROXIES: must be addresses or networks"),
        ({"CORS_ORIGINS": "null"}, "CORS_ORIGINS: must be origins"),
        ({"RATE_LIMIT": "many"}, "RATE_LIMIT: "),
        ({"WORKERS": "0"}, "WORKERS: Input should be greater than or equal to 1"),
        ({"WORKERS": "many"}, "WORKERS: Input should be 'auto'"),
    ],
)
def test_a_setting_that_cannot_be_used_ends_the_start_with_its_name(environment: dict[str, str], says: str) -> None:
    """One line for each, no traceback, exit code 1."""
    ended = _serve(**environment)
    assert ended.returncode == 1
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_that_is_taken_ends_the_start_with_one_line() -> None:
    """Before anything slow happens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = _serve(PORT=str(port))
    assert ended.returncode == 1
    reason = f"cannot listen on 127.0.0.1:{port}: Address already in use; set PORT (or HOST) to something else"
    assert ended.stderr == f"presage: {reason}\n"


def test_of_two_that_start_at_once_on_one_port_one_ends_with_a_line(tmp_path: Path) -> None:
    """Two may bind an address, and only one may listen; the other must not believe that it serves."""
    environment = clean_environment(PORT=str(free_port()), MODELS_DIR=str(tmp_path), JOURNAL_DIR=str(tmp_path / "j"))
    command = [sys.executable, "-m", "app", "serve"]
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    try:
        deadline = time.monotonic() + 30
        while all(process.poll() is None for process in both):
            assert time.monotonic() < deadline, "both believe that they serve"
            time.sleep(0.05)
        assert sorted(process.poll() is None for process in both) == [False, True]
    finally:
        for process in both:
            process.kill()
            process.wait()


def test_a_start_without_models_says_so_and_lives(tmp_path: Path) -> None:
    """The service is up, not ready, and points at the reason."""
    with running_server(tmp_path, tmp_path / "log", {"LOG_FORMAT": "console"}, wait=False) as server:
        answer = server.wait_for("/health/ready", 503)
        assert answer.json()["detail"] == "required models are missing: sentiment"
        assert server.wait_for_output("(/health/ready says why)")


def test_the_printed_call_is_no_404_for_a_sentiment_model_of_ones_own(models_dir: Path, tmp_path: Path) -> None:
    """One that no alias `v1` names is called by version 2."""
    shutil.copytree(models_dir / "sentiment", tmp_path / "models/sentiment")
    (tmp_path / "models/sentiment/aliases.json").write_text('{"champion": 2}')
    with running_server(tmp_path / "models", tmp_path / "log", _as_a_newcomer()) as server:
        printed = server.wait_for_output(_CURL)
        answer = subprocess.run(shlex.split(printed), capture_output=True, text=True, check=True)
        assert '"prediction":"' in answer.stdout


def test_a_model_that_hangs_while_it_is_loaded_does_not_keep_the_server_from_stopping(tmp_path: Path) -> None:
    """The loading thread is left behind after a bounded while."""
    outputs = Outputs(target="number")
    write_version(tmp_path / "models", Hanging(), task="regression", outputs=outputs, golden=one_golden(0.0))
    environment = {"DEFAULT_MODEL": "toy", "MODEL_MODULES": MODULES, "LOG_FORMAT": "json"}
    with running_server(tmp_path / "models", tmp_path / "log", environment, wait=False) as server:
        server.wait_for("/health/ready", 503)
        assert server.stop() == 0
