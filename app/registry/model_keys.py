"""Keys for models, on disk, in PEM: `NAME.key` (private, PKCS8) signs, `NAME.pub` says whose signatures count."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from app.errors import SigningRefused
from app.registry.signatures import PublicKey

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_BYTES = 16 << 10


class UnusableKey(Exception):
    """A file holds no public key for models."""


class PassphraseNeeded(SigningRefused):
    """The private key is encrypted, and no passphrase came with it."""


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """The keys of a folder by their fingerprints, and what of it holds no key; nobody is believed for that."""

    known: Mapping[str, PublicKey]
    problems: tuple[str, ...] = ()


def read_public_keys(folder: Path | None) -> PublicKeys:
    """Whatever is wrong with one file, or with the folder, the others count."""
    if folder is None:
        return PublicKeys({})
    known: dict[str, PublicKey] = {}
    problems = []
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".pub")
    except OSError as error:
        return PublicKeys({}, (f"MODEL_KEYS_DIR: {folder}: {error.strerror}",))
    for path in paths:
        try:
            key = _public_key(path)
        except UnusableKey as error:
            problems.append(f"MODEL_KEYS_DIR: {path.name}: {error}")
        else:
            known.setdefault(key.fingerprint, key)
    return PublicKeys(known, tuple(problems))


def make_key_pair(name: str, folder: Path, passphrase: str = "") -> PublicKey:
    """Write `NAME.key`, for its owner alone, and `NAME.pub`. Raises SigningRefused; nothing is ever overwritten."""
    if not _NAME.fullmatch(name):
        raise SigningRefused("a key's name has 1 to 64 letters, digits, dots, hyphens and underscores, a letter first")
    private = Ed25519PrivateKey.generate()
    public = private.public_key()
    secret = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, _encryption(passphrase))
    shown = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    # The public half first: whoever is stopped between the two has lost nothing.
    open_half, secret_half = folder / f"{name}.pub", folder / f"{name}.key"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (open_half, secret_half):
            if path.exists():
                raise SigningRefused(f"{path} exists already; keys are never overwritten")
        _write(open_half, shown, 0o644)
        _write(secret_half, secret, 0o600)
    except OSError as error:
        raise SigningRefused(f"{folder}: the key cannot be written: {error.strerror}") from None
    return PublicKey(name, public)


def read_private_key(path: Path, passphrase: str = "") -> Ed25519PrivateKey:
    """Raises PassphraseNeeded for an encrypted key without one, and SigningRefused for what cannot be used."""
    try:
        content = path.read_bytes()[:_MOST_BYTES]
    except OSError as error:
        raise SigningRefused(f"{path}: {error.strerror}") from None
    encrypted = b"BEGIN ENCRYPTED PRIVATE KEY" in content
    if encrypted and not passphrase:
        raise PassphraseNeeded(f"{path} is encrypted: set MODEL_KEY_PASSPHRASE")
    try:
        key = load_pem_private_key(content, passphrase.encode() if encrypted else None)
    except (ValueError, TypeError):
        wrong = "cannot be decrypted with this passphrase" if encrypted else "is no private key in PEM"
        raise SigningRefused(f"{path} {wrong}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningRefused(f"{path} is no Ed25519 key")
    return key


def _public_key(path: Path) -> PublicKey:
    try:
        key = load_pem_public_key(path.read_bytes()[:_MOST_BYTES])
    except OSError as error:
        raise UnusableKey(error.strerror) from None
    except ValueError:
        raise UnusableKey("is no public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UnusableKey("is no Ed25519 key")
    return PublicKey(path.stem, key)


def _encryption(passphrase: str) -> KeySerializationEncryption:
    return BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()


def _write(path: Path, content: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
