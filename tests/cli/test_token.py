"""`token`: what it prints, the server takes; what it refuses is one line."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import SecretStr

from app.auth.keys import KeyRing
from app.auth.tokens import Claims, Verifier
from app.cli.token import token
from app.config import AuthSettings
from app.errors import OperatorError
from tests.support.demo import MODULES
from tests.support.server import ROOT, Server, clean_environment, running_server
from tests.support.tokens import SECRET

TEXT = {"text": "I love this product"}


@pytest.fixture(scope="module")
def server(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the keys of a folder, and a secret beside them."""
    folder = tmp_path_factory.mktemp("token")
    environment = {"MODEL_MODULES": MODULES, "AUTH_MODE": "jwt", "JWT_KEYS_DIR": f"{folder}/keys", "JWT_SECRET": SECRET}
    with running_server(models_dir, folder / "log", environment) as started:
        yield started


def _process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "app", "token", *arguments],
        cwd=ROOT,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _invoke(*arguments: str, environment: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(token, arguments, env={"JWT_SECRET": SECRET, **(environment or {})})


def _claims(*arguments: str) -> Claims:
    result = _invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    ring = KeyRing(AuthSettings(jwt_secret=SecretStr(SECRET)), production=True)
    return Verifier(ring.find, 0).verify(result.stdout.strip().encode(), time.time())


def test_the_server_takes_what_it_prints(server: Server) -> None:
    """Alone on standard output, so that it can be put where it is needed; and the record has its subject."""
    ended = _process("--subject", "alice", "--scope", "predict", "--scope", "read", JWT_SECRET=SECRET)
    assert (ended.returncode, ended.stderr) == (0, "")
    (line,) = ended.stdout.splitlines()
    assert SECRET not in ended.stdout
    with server.client() as client:
        client.headers["Authorization"] = f"Bearer {line}"
        assert client.post("/predict", json=TEXT).status_code == 200
        usage = client.get("/v2/usage").json()
        assert (usage["principal"], usage["scopes"]) == ("alice", ["predict", "read"])
        assert client.get("/admin/clients").status_code == 403


def test_a_key_of_the_folder_signs_where_there_is_no_secret(tmp_path: Path) -> None:
    """In production, too."""
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "ours.pem").write_bytes(pem)
    ended = _process("--subject", "alice", JWT_KEYS_DIR=str(tmp_path), ENVIRONMENT="production")
    assert (ended.returncode, ended.stderr) == (0, "")
    ring = KeyRing(AuthSettings(jwt_keys_dir=tmp_path), production=True)
    assert Verifier(ring.find, 0).verify(ended.stdout.strip().encode(), time.time()).subject == "alice"


def test_it_permits_the_least_that_is_useful() -> None:
    """For an hour, unless told otherwise; and each is another."""
    before = int(time.time())
    found, other = _claims("--subject", "alice"), _claims("--subject", "alice")
    assert (found.subject, found.issuer) == ("alice", "presage")
    assert found.scopes == {"predict"}
    assert found.expires_at - found.issued_at == 3600
    assert before <= found.issued_at <= time.time()
    assert found.jti != other.jti


@pytest.mark.parametrize(
    ("written", "seconds"), [("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000), ("366d", 31_622_400)]
)
def test_it_is_valid_for_as_long_as_is_said(written: str, seconds: int) -> None:
    """In seconds, minutes, hours or days."""
    found = _claims("--subject", "alice", "--expires", written)
    assert found.expires_at - found.issued_at == seconds


def test_it_permits_what_is_said_and_nothing_else() -> None:
    """Scopes of every kind, once each."""
    scopes = ["predict:iris", "feedback", "read", "admin", "read"]
    found = _claims("--subject", "svc@example.com", *(word for scope in scopes for word in ("--scope", scope)))
    assert found.scopes == set(scopes)


WRONG = {
    "no subject": (),
    "an empty subject": ("--subject", ""),
    "a subject with a space": ("--subject", "alice in chains"),
    "a subject with a line break": ("--subject", "alice\nroot"),
    "a subject in other letters": ("--subject", "Zoë"),
    "a subject that is long": ("--subject", "a" * 256),
    "an unknown scope": ("--subject", "alice", "--scope", "root"),
    "two scopes in one": ("--subject", "alice", "--scope", "read admin"),
    "a scope of no model": ("--subject", "alice", "--scope", "predict:"),
    "an empty scope": ("--subject", "alice", "--scope", ""),
    "no unit": ("--subject", "alice", "--expires", "60"),
    "no time": ("--subject", "alice", "--expires", "0h"),
    "a time that is past": ("--subject", "alice", "--expires", "-1h"),
    "another unit": ("--subject", "alice", "--expires", "1w"),
    "for ever": ("--subject", "alice", "--expires", "367d"),
    "for ever in seconds": ("--subject", "alice", "--expires", "9" * 30 + "s"),
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_prints_no_token(arguments: tuple[str, ...]) -> None:
    """It is a mistake of whoever types, and the message says of which option."""
    result = _invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert (arguments[-2] if arguments else "--subject") in result.stderr
    assert SECRET not in result.output


@pytest.mark.parametrize("secret", ["", "short-and-secret", "change-me-" + SECRET])
def test_production_without_a_secret_is_one_line(tmp_path: Path, secret: str) -> None:
    """With exit code 1: none is made, and a bad one is not repeated."""
    keys = tmp_path / "keys"
    ended = _process("--subject", "alice", ENVIRONMENT="production", JWT_KEYS_DIR=str(keys), JWT_SECRET=secret)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("presage: invalid settings\n  JWT_SECRET: ")
    assert len(ended.stderr.splitlines()) == 2
    assert not secret or secret not in ended.stderr
    assert not keys.exists()


def test_a_key_that_only_verifies_signs_nothing(tmp_path: Path) -> None:
    """Nor does somebody else's: the line says where tokens come from."""
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    (tmp_path / "theirs.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    result = _invoke("--subject", "alice", environment={"JWT_SECRET": "", "JWT_KEYS_DIR": str(tmp_path)})
    assert isinstance(result.exception, OperatorError)
    assert "no key here can sign" in str(result.exception)
    assert result.stdout == ""


def test_the_first_run_in_development_makes_a_key_that_the_server_uses(tmp_path: Path) -> None:
    """Whichever of the two comes first; the key itself is not printed."""
    ended = _process("--subject", "alice", JWT_KEYS_DIR=str(tmp_path / "keys"))
    assert ended.returncode == 0
    (file,) = (tmp_path / "keys").iterdir()
    assert file.read_text() not in ended.stdout + ended.stderr
    ring = KeyRing(AuthSettings(jwt_keys_dir=tmp_path / "keys"), production=True)
    assert Verifier(ring.find, 0).verify(ended.stdout.strip().encode(), time.time()).subject == "alice"
