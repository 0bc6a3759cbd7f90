"""KeyRing: the keys that sign and verify tokens made here, from a setting and from a folder that may change any time.

One algorithm belongs to a key, by what the key is: a secret is HS256, an RSA key RS256, a key on P-256 ES256. A token
names its key, and has no say in the algorithm.
"""

import hashlib
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from app.config import AuthSettings, check_secret
from app.errors import InvalidSettings
from app.storage.secret_file import make_secret

log = structlog.get_logger(__name__)

Algorithm = Literal["HS256", "RS256", "ES256"]

_SUFFIXES = (".pem", ".secret")
_KID = re.compile(r"[A-Za-z0-9._-]{1,64}")
SMALLEST_RSA_BITS = 2048
_MOST_BYTES = 16 << 10
# Long enough for every process on this disk to have read a new key before the first token of it comes by.
_SETTLING_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Key:
    """A key with everything that a token of it must say; `private` is None where it only verifies."""

    kid: str
    algorithm: Algorithm
    public: bytes = field(repr=False)
    private: bytes | None = field(repr=False)
    issuer: str
    audience: str
    types: tuple[str, ...]


class UnusableKey(Exception):
    """A file of the folder holds no key that can be used; the text is for the operator."""


class KeyRing:
    """The keys as they are now. `refresh` looks whether the folder has changed; `number` grows when it has."""

    def __init__(self, settings: AuthSettings, *, production: bool) -> None:
        """Raises InvalidSettings for a folder with a bad key, and in production when nothing can sign or verify."""
        self._folder = settings.jwt_keys_dir
        self._issuer, self._audience = settings.jwt_issuer, settings.jwt_audience
        self._secret = settings.jwt_secret.get_secret_value()
        self._state: object = None
        self._keys: dict[str, Key] = {}
        self._changed: dict[str, float] = {}
        self._failing = False
        self.number = 0
        if not self._secret and not _key_files(self._folder) and not settings.jwks_url:
            if production:
                raise InvalidSettings(["JWT_SECRET: is required in production, or keys in JWT_KEYS_DIR, or JWKS_URL"])
            _make_secret(self._folder)
        try:
            self._read()
        except UnusableKey as error:
            raise InvalidSettings([f"JWT_KEYS_DIR: {error}"]) from None

    def find(self, kid: str) -> Key | None:
        """The key of that id."""
        return self._keys.get(kid)

    def signing_key(self) -> Key | None:
        """The one that signs now: that of the setting, else the last name that can and has been there for a while."""
        able = [key for key in self._keys.values() if key.private is not None]
        settled = [key for key in able if self._settled(key)]
        return (settled or able)[-1] if able else None

    def refresh(self) -> None:
        """Read the folder again if it has changed; while it cannot be used, the keys stay as they were."""
        if _state_of(self._folder) == self._state:
            return
        try:
            self._read()
        except UnusableKey as error:
            if not self._failing:
                log.error("keys_not_read", reason=str(error))
            self._failing = True
        else:
            self._failing = False
            log.info("keys_read", keys=sorted(self._keys))

    def _read(self) -> None:
        state = _state_of(self._folder)
        found = [(self._from_file(path), path) for path in _key_files(self._folder)]
        self._keys = {key.kid: key for key, _ in found}
        self._changed = {key.kid: path.stat().st_mtime for key, path in found}
        if self._secret:
            key = self._from_secret(self._secret.encode())
            self._keys.pop(key.kid, None)
            self._keys[key.kid] = key  # last, so that it signs
        self._state = state
        self.number += 1

    def _settled(self, key: Key) -> bool:
        return time.time() - self._changed.get(key.kid, 0.0) >= _SETTLING_SECONDS

    def _from_file(self, path: Path) -> Key:
        try:
            content = path.read_bytes()[:_MOST_BYTES].strip()
        except OSError as error:
            raise UnusableKey(f"{path.name}: {error.strerror}") from None
        if path.suffix == ".pem":
            return self._from_pem(path.stem, content)
        try:
            check_secret(content.decode("ascii"))
        except ValueError as error:  # UnicodeDecodeError, too
            raise UnusableKey(f"{path.name}: {error}") from None
        return self._from_secret(content)

    def _from_secret(self, secret: bytes) -> Key:
        """The id is made from the secret, so that it stays the same when a setting becomes a file."""
        kid = hashlib.sha256(b"presage kid " + secret).hexdigest()[:16]
        return self._key(kid, "HS256", public=secret, private=secret)

    def _from_pem(self, kid: str, content: bytes) -> Key:
        private = content if b"PRIVATE KEY-----" in content else None
        try:
            public = (
                load_pem_private_key(private, password=None).public_key() if private else load_pem_public_key(content)
            )
        except (ValueError, TypeError):  # TypeError: it is encrypted
            raise UnusableKey(f"{kid}.pem: is no unencrypted key in PEM") from None
        encoded = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return self._key(kid, _algorithm_of(public, kid), public=encoded, private=private)

    def _key(self, kid: str, algorithm: Algorithm, *, public: bytes, private: bytes | None) -> Key:
        return Key(kid, algorithm, public, private, self._issuer, self._audience, ("at+jwt",))


def _algorithm_of(public: object, kid: str) -> Algorithm:
    if isinstance(public, RSAPublicKey | RSAPrivateKey):
        if public.key_size < SMALLEST_RSA_BITS:
            raise UnusableKey(f"{kid}.pem: an RSA key must have at least {SMALLEST_RSA_BITS} bits")
        return "RS256"
    if isinstance(public, EllipticCurvePublicKey | EllipticCurvePrivateKey) and isinstance(public.curve, SECP256R1):
        return "ES256"
    raise UnusableKey(f"{kid}.pem: must be an RSA key or one on P-256")


def _key_files(folder: Path) -> list[Path]:
    try:
        found: Iterable[Path] = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InvalidSettings([f"JWT_KEYS_DIR: {error.strerror}"]) from None
    return [path for path in found if path.suffix in _SUFFIXES and _KID.fullmatch(path.stem)]


def _state_of(folder: Path) -> object:
    """What differs when the folder has other content."""
    try:
        return [(entry.name, entry.stat().st_mtime_ns, entry.stat().st_size) for entry in sorted(_key_files(folder))]
    except (OSError, InvalidSettings):
        return None


def _make_secret(folder: Path) -> None:
    """A secret of one's own, for the first run; complete when it appears, whoever else does the same."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        make_secret(folder / "generated.secret")
    except OSError as error:
        raise InvalidSettings([f"JWT_KEYS_DIR: no key can be made there: {error.strerror}; set JWT_SECRET"]) from None
