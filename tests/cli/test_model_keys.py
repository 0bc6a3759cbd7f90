"""`models keygen`, `sign` and `verify`: from a fresh key to a table that says what a server would load."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli.models import models
from app.errors import InvalidSettings, SigningRefused
from tests.support.server import ROOT, clean_environment
from tests.support.versions import HERE, write_classifier

PASSPHRASE = {"MODEL_KEY_PASSPHRASE": "correct horse"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two versions of `toy`, and one of `other`."""
    write_classifier(tmp_path / "models")
    write_classifier(tmp_path / "models", version=2)
    write_classifier(tmp_path / "models", name="other")
    return tmp_path


def _run(root: Path, *arguments: str, **settings: str) -> Result:
    environment = {"MODELS_DIR": str(root / "models"), "MODEL_KEYS_DIR": str(root / "keys"), **settings}
    return CliRunner().invoke(models, arguments, env=environment)


def _keygen(root: Path, name: str = "alice", **settings: str) -> str:
    result = _run(root, "keygen", name, "--folder", str(root / "keys"), **settings)
    assert result.exit_code == 0, result.output
    return str(root / "keys" / f"{name}.key")


def test_from_a_key_to_versions_that_production_loads(root: Path) -> None:
    """Make a key, sign the champion, then all versions, then the other model; each command says what it did."""
    key = _keygen(root)
    assert _run(root, "sign", "toy", "--key", key).output == "toy 2: signed\n"
    assert _run(root, "sign", "toy", "--all", "--key", key).output == (
        "toy 1: signed\ntoy 2: has this signature already\n"
    )
    before = _run(root, "verify", ENVIRONMENT="production")
    assert before.exit_code == 1
    assert _run(root, "sign", "other@1", MODEL_SIGNING_KEY=key).output == "other 1: signed\n"
    after = _run(root, "verify", ENVIRONMENT="production")
    assert after.exit_code == 0
    head, *lines = after.output.splitlines()
    assert head.split() == ["NAME", "VERSION", "DIGEST", "SIGNATURE", "KEY", "VERDICT"]
    cells = [line.split() for line in lines]
    assert [(name, number) for name, number, *_ in cells] == [("other", "1"), ("toy", "1"), ("toy", "2")]
    assert all(rest == ["good", "alice", "ok"] for *_, rest in ((*line[:3], line[3:]) for line in cells))


def test_verify_says_what_would_be_refused_and_why(root: Path) -> None:
    """By the settings as they are: a digest always, a missing signature where one is required."""
    key = _keygen(root)
    _run(root, "sign", "toy@1", "--key", key)
    artefact = root / "models/toy/2/model.joblib"
    artefact.write_bytes(artefact.read_bytes()[:-1] + b"?")
    lines = _run(root, "verify", "toy").output.splitlines()[1:]
    assert lines[0].endswith("ok")
    assert "digest_mismatch" in lines[1]
    assert "unsigned" in lines[1]
    assert _run(root, "verify", "toy@1").exit_code == 0
    assert _run(root, "verify", "other").exit_code == 0
    required = _run(root, "verify", "other", MODEL_SIGNATURES="require")
    assert required.exit_code == 1
    assert "unsigned: it has no signature; sign it" in required.output
    nobody = _run(root, "verify", "toy@1", MODEL_KEYS_DIR="", ENVIRONMENT="production")
    assert nobody.exit_code == 1
    assert "unknown_key" in nobody.output


def test_verify_shows_libraries_that_differ(root: Path) -> None:
    """Refused, or left to the golden rows, which it does not ask."""
    write_classifier(root / "models", version=3, versions=HERE.model_copy(update={"scikit_learn": "1.0.2"}))
    assert "library_mismatch" in _run(root, "verify", "toy@3").output
    proven = _run(root, "verify", "toy@3", MODEL_LIBRARIES="proven")
    assert proven.exit_code == 0
    assert "ok; fitted with scikit-learn 1.0.2" in proven.output


def test_verify_shows_manifests_that_cannot_be_read(root: Path) -> None:
    """A line each, like all others."""
    (root / "models/toy/1/manifest.json").write_text("{")
    result = _run(root, "verify", "toy")
    assert result.exit_code == 1
    assert "manifest_invalid" in result.output.splitlines()[1]


def test_the_list_names_who_signed(root: Path) -> None:
    """Or that it is nobody known, or that the signature is bad."""
    _run(root, "sign", "toy@1", "--key", _keygen(root))
    _run(root, "sign", "toy@2", "--key", _keygen(root, "bob"))
    (root / "keys/bob.pub").unlink()
    (root / "models/other/1/manifest.sig").write_text("{}")
    head, *lines = _run(root, "list").output.splitlines()
    place = head.index("SIGNED")
    assert [line[place:].split()[0] for line in lines] == ["invalid", "alice", "unknown"]


@pytest.mark.parametrize("arguments", [("toy@9",), ("none",), ("toy@1", "--all"), ("toy@none",)])
def test_what_is_not_there_is_not_signed(root: Path, arguments: tuple[str, ...]) -> None:
    """A usage error that names what there is."""
    assert _run(root, "sign", *arguments, "--key", _keygen(root)).exit_code == 2


def test_to_sign_takes_a_key(root: Path) -> None:
    """From the option or the setting."""
    assert isinstance(_run(root, "sign", "toy").exception, SigningRefused)


def test_required_signatures_without_a_key_are_an_error_of_the_settings(root: Path) -> None:
    """As at the start of a server."""
    assert isinstance(_run(root, "verify", MODEL_SIGNATURES="require").exception, InvalidSettings)


def test_keys_are_not_overwritten(root: Path) -> None:
    """The second `keygen` of a name is refused."""
    _keygen(root)
    assert isinstance(_run(root, "keygen", "alice", "--folder", str(root / "keys")).exception, SigningRefused)


def test_a_passphrase_comes_from_the_environment(root: Path) -> None:
    """Then the private key is encrypted, and without the passphrase nothing is signed by a script."""
    key = _keygen(root, **PASSPHRASE)
    assert b"ENCRYPTED" in Path(key).read_bytes()
    assert "set MODEL_KEY_PASSPHRASE" in str(_run(root, "sign", "toy", "--key", key).exception)
    assert _run(root, "sign", "toy", "--key", key, **PASSPHRASE).exit_code == 0


def test_a_passphrase_is_asked_for_at_a_terminal(root: Path) -> None:
    """Twice when the key is made, once when it signs; it is not shown."""
    key = root / "keys/alice.key"
    _at_a_terminal(root, "keygen", "alice", "--folder", str(key.parent), "--passphrase", answers=["horse", "horse"])
    assert b"ENCRYPTED" in key.read_bytes()
    shown = _at_a_terminal(root, "sign", "toy", "--key", str(key), answers=["horse"])
    assert "toy 2: signed" in shown
    assert "horse" not in shown


def _at_a_terminal(root: Path, *arguments: str, answers: list[str]) -> str:
    """Run a command at a terminal of its own, and type each answer once it is asked for; what the terminal shows."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "models", *arguments],
        cwd=ROOT,
        env=clean_environment(MODELS_DIR=str(root / "models")),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = ""
    for answer in [*answers, ""]:
        while not (answer and shown.endswith(": ")):
            try:
                shown += os.read(ours, 1024).decode()
            except OSError:  # the command has ended
                break
        if answer:
            os.write(ours, f"{answer}\n".encode())
            shown += "\n"
    os.close(ours)
    assert process.wait(30) == 0, shown
    return shown
