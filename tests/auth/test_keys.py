"""The key ring: which keys there are, which signs, and what may be no key."""

import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydantic import SecretStr, ValidationError

from app.auth.keys import KeyRing
from app.config import AuthSettings
from app.errors import InvalidSettings
from tests.support.tokens import SECRET, kid_of

OTHER = SECRET[::-1]


def ring(folder: Path, *, production: bool = False, **settings: Any) -> KeyRing:
    """One with these settings."""
    return KeyRing(AuthSettings(jwt_keys_dir=folder, **settings), production=production)


def pem(private: Any, encryption: KeySerializationEncryption | None = None) -> bytes:
    """A private key as a file has it."""
    content: bytes = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return content


def settle(path: Path) -> None:
    """Let a file be old enough to sign with."""
    os.utime(path, (time.time() - 60, time.time() - 60))


def test_the_first_run_makes_a_secret_that_only_its_owner_reads(tmp_path: Path) -> None:
    """And later runs, and other processes, use the same."""
    folder = tmp_path / "var/keys"
    first = ring(folder)
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    key, again = first.signing_key(), ring(folder).signing_key()
    assert key is not None
    assert again is not None
    assert (key.kid, len(key.public)) == (again.kid, 64)
    assert path.read_text() not in repr(key)


def test_production_makes_no_key_of_its_own(tmp_path: Path) -> None:
    """It refuses to start, names the setting, and leaves no file behind."""
    with pytest.raises(InvalidSettings, match="JWT_SECRET"):
        ring(tmp_path / "keys", production=True)
    assert not (tmp_path / "keys").exists()


def test_production_starts_with_a_secret_a_key_or_an_issuer(tmp_path: Path) -> None:
    """Any of the three will do."""
    assert ring(tmp_path, production=True, jwt_secret=SecretStr(SECRET)).signing_key() is not None
    issuer = {"jwks_url": "https://issuer.test/keys", "jwks_issuer": "https://issuer.test"}
    assert ring(tmp_path, production=True, **issuer).signing_key() is None
    (tmp_path / "one.secret").write_text(OTHER)
    assert ring(tmp_path, production=True).signing_key() is not None


WEAK = {
    "short": "s3cr3t",
    "31 characters": SECRET[:31],
    "one letter": "a" * 64,
    "two letters": "ab" * 32,
    "from a tutorial": "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
    "to be changed": "change-me-please-change-me-please-0123456789",
    "somebody's default": "your-256-bit-secret-that-is-long-enough-0123",
    "an example": "this-is-an-example-secret-of-some-length-42",
    "a JSON string": f'"{SECRET}"',
    "a JSON number": "12345678901234567890123456789012345678",
    "a JSON object": '{"kty": "oct", "k": "abcdefghijklmnopqrstuvwxyz"}',
}


@pytest.mark.parametrize("secret", WEAK.values(), ids=WEAK)
def test_a_weak_secret_is_refused_wherever_it_stands(tmp_path: Path, secret: str) -> None:
    """In the setting and in a file, and it is not repeated."""
    with pytest.raises(ValidationError) as refused:
        AuthSettings(jwt_secret=SecretStr(secret))
    assert secret not in str(refused.value)
    (tmp_path / "weak.secret").write_text(secret)
    with pytest.raises(InvalidSettings, match=r"weak\.secret") as also:
        ring(tmp_path)
    assert secret not in str(also.value)


BAD_FILES: dict[str, bytes] = {
    "no key": b"hello",
    "nothing": b"",
    "small RSA": pem(rsa.generate_private_key(65537, 1024)),  # noqa: S505 -- which is why it is refused
    "another curve": pem(ec.generate_private_key(ec.SECP384R1())),
    "encrypted": pem(ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"word")),
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_without_a_usable_key_ends_the_start(tmp_path: Path, content: bytes) -> None:
    """With its name, and not with its content."""
    (tmp_path / "bad.pem").write_bytes(content)
    with pytest.raises(InvalidSettings, match=r"JWT_KEYS_DIR: bad\.pem"):
        ring(tmp_path)


def test_the_last_name_signs_and_all_verify(tmp_path: Path) -> None:
    """A public key verifies only, and one algorithm belongs to each."""
    (tmp_path / "2026-01.pem").write_bytes(pem(rsa.generate_private_key(65537, 2048)))
    (tmp_path / "2026-02.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    (tmp_path / "2026-03.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for path in tmp_path.iterdir():
        settle(path)
    keys = ring(tmp_path)
    found = {kid: key.algorithm for kid in ("2026-01", "2026-02", "2026-03") if (key := keys.find(kid))}
    assert found == {"2026-01": "RS256", "2026-02": "ES256", "2026-03": "ES256"}
    signing = keys.signing_key()
    assert signing is not None
    assert signing.kid == "2026-02"


def test_the_setting_signs_before_every_file(tmp_path: Path) -> None:
    """And what it was before may stay as a file, so that its tokens go on being good."""
    (tmp_path / "zzz.secret").write_text(OTHER)
    settle(tmp_path / "zzz.secret")
    keys = ring(tmp_path, jwt_secret=SecretStr(SECRET))
    signing = keys.signing_key()
    assert signing is not None
    assert signing.kid == kid_of(SECRET)
    assert keys.find(kid_of(OTHER)) is not None


def test_a_new_key_verifies_at_once_and_signs_a_little_later(tmp_path: Path) -> None:
    """So that no process sees a token of a key that it has not read yet."""
    (tmp_path / "a.secret").write_text(SECRET)
    settle(tmp_path / "a.secret")
    keys = ring(tmp_path)
    number = keys.number
    (tmp_path / "b.secret").write_text(OTHER)
    keys.refresh()
    assert keys.number > number
    assert keys.find(kid_of(OTHER)) is not None
    assert (key := keys.signing_key()) is not None
    assert key.kid == kid_of(SECRET)
    settle(tmp_path / "b.secret")
    keys.refresh()
    assert (key := keys.signing_key()) is not None
    assert key.kid == kid_of(OTHER)


def test_a_key_that_is_gone_verifies_nothing(tmp_path: Path) -> None:
    """As soon as the folder is looked at again; and looking at what is the same changes nothing."""
    (tmp_path / "a.secret").write_text(SECRET)
    (tmp_path / "b.secret").write_text(OTHER)
    keys = ring(tmp_path)
    (tmp_path / "a.secret").unlink()
    keys.refresh()
    assert keys.find(kid_of(SECRET)) is None
    number = keys.number
    keys.refresh()
    assert keys.number == number


def test_a_bad_file_in_a_running_service_changes_nothing(tmp_path: Path) -> None:
    """The keys stand until the folder is in order again."""
    (tmp_path / "a.secret").write_text(SECRET)
    keys = ring(tmp_path)
    (tmp_path / "b.pem").write_text("half a ke")
    keys.refresh()
    assert keys.find(kid_of(SECRET)) is not None
    (tmp_path / "b.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    keys.refresh()
    assert keys.find("b") is not None
