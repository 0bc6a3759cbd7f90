"""Issuer: the published keys (JWKS) of somebody else who makes tokens, held here so that no request waits for them.

They are fetched now and then, and soon after a token names a key that is not among them. While the issuer is down its
last keys stand. The address is the operator's; still nothing is followed that it redirects to, and what answers from a
link-local address, where clouds keep their secrets, is not asked.
"""

import base64
import contextlib
import http.client
import ipaddress
import json
import socket
import ssl
import threading
from typing import Any, Self
from urllib.parse import urlsplit

import structlog
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app.auth.keys import SMALLEST_RSA_BITS, Algorithm, Key
from app.config import AuthSettings

log = structlog.get_logger(__name__)

_EVERY_SECONDS = 300.0
_RETRY_SECONDS = 4.0
# A token with an unknown key may ask for a fetch this often.
_SOON_SECONDS = 2.0
_TIMEOUT_SECONDS = 3.0
_WHOLE_SECONDS = 4.0
_MOST_BYTES = 256 << 10
_MOST_KEYS = 50
_OK = 200


class IssuerUnreachable(Exception):
    """No keys could be fetched; the text is for the log."""


class Issuer:
    """A context manager: entering starts the thread that fetches, leaving ends it. Any thread may call `find`."""

    def __init__(self, settings: AuthSettings) -> None:
        """Does nothing for ever where no JWKS_URL is set."""
        self._settings = settings
        self._keys: dict[str, Key] = {}
        self._wanted = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="issuer", daemon=True)
        self._reachable: bool | None = None
        self.number = 0

    def __enter__(self) -> Self:
        if self._settings.jwks_url:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._wanted.set()  # a fetch that hangs ends by its own time-out, and nobody waits for it

    @property
    def awaited(self) -> bool:
        """Whether there should be keys and none have ever come."""
        return bool(self._settings.jwks_url) and not self._keys

    def find(self, kid: str) -> Key | None:
        """The key of that id; one that is unknown is looked for soon, for the tokens that come after."""
        key = self._keys.get(kid)
        if key is None:
            self._wanted.set()
        return key

    def _run(self) -> None:
        while True:
            self._fetch()
            # Tokens with unknown keys may come by the thousand; the issuer is asked for them no more often than this.
            if self._ended.wait(_SOON_SECONDS):
                return
            self._wanted.wait((_EVERY_SECONDS if self._reachable else _RETRY_SECONDS) - _SOON_SECONDS)
            self._wanted.clear()
            if self._ended.is_set():
                return

    def _fetch(self) -> None:
        try:
            keys = _keys_of(_download(self._settings.jwks_url), self._settings)
        except Exception as error:  # noqa: BLE001 -- whatever it answers, the last keys stand and it is asked again
            if self._reachable is not False:
                log.warning("issuer_unreachable", reason=str(error) or type(error).__name__, keys=sorted(self._keys))
            self._reachable = False
            return
        if self._reachable is not True or keys.keys() != self._keys.keys():
            log.info("issuer_keys_read", keys=sorted(keys))
        self._reachable = True
        if keys != self._keys:
            self._keys = keys
            self.number += 1


def _download(url: str) -> Any:
    """The document at an address, without following anything."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    _check_address(host, parts.port or (443 if parts.scheme == "https" else 80))
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, parts.port, timeout=_TIMEOUT_SECONDS, context=context)
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=_TIMEOUT_SECONDS)
    connection.connect()
    # The time-out is for each read; an issuer that sends a byte a second would have the thread for ever.
    cut = threading.Timer(_WHOLE_SECONDS, _cut, [connection.sock])
    cut.daemon = True
    cut.start()
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "application/json"})
        answer = connection.getresponse()
        if answer.status != _OK:
            raise IssuerUnreachable(f"status {answer.status}")
        content = answer.read(_MOST_BYTES + 1)
    finally:
        cut.cancel()
        connection.close()
    if len(content) > _MOST_BYTES:
        raise IssuerUnreachable(f"more than {_MOST_BYTES} bytes")
    return json.loads(content)


def _cut(connected: socket.socket) -> None:
    """End the wait of whoever reads from it."""
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _check_address(host: str, port: int) -> None:
    for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        found = ipaddress.ip_address(str(address[0]).partition("%")[0])
        mapped = getattr(found, "ipv4_mapped", None)
        if (mapped or found).is_link_local or found.is_multicast or found.is_unspecified:
            raise IssuerUnreachable("its name stands for an address that is no issuer's")


def _keys_of(document: Any, settings: AuthSettings) -> dict[str, Key]:
    """The keys of a JWKS that can verify RS256 or ES256; others are no concern of ours."""
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise IssuerUnreachable("what it answers is no JWKS")
    keys = [_key_of(entry, settings) for entry in listed[:_MOST_KEYS] if isinstance(entry, dict)]
    return {key.kid: key for key in keys if key is not None}


def _key_of(entry: dict[str, Any], settings: AuthSettings) -> Key | None:
    kid = entry.get("kid")
    if not isinstance(kid, str) or entry.get("use", "sig") != "sig":
        return None
    found = _public_key(entry)
    if found is None or entry.get("alg", found[0]) != found[0]:
        return None
    algorithm, public = found
    audience = settings.jwks_audience or settings.jwt_audience
    return Key(kid, algorithm, public, None, settings.jwks_issuer, audience, settings.jwks_token_types)


def _public_key(entry: dict[str, Any]) -> tuple[Algorithm, bytes] | None:
    try:
        if entry.get("kty") == "RSA":
            numbers = rsa.RSAPublicNumbers(_integer(entry["e"]), _integer(entry["n"]))
            public: Any = numbers.public_key()
            algorithm: Algorithm = "RS256"
            if public.key_size < SMALLEST_RSA_BITS:
                return None
        elif entry.get("kty") == "EC" and entry.get("crv") == "P-256":
            public = ec.EllipticCurvePublicNumbers(
                _integer(entry["x"]), _integer(entry["y"]), ec.SECP256R1()
            ).public_key()
            algorithm = "ES256"
        else:
            return None
    except (KeyError, ValueError, TypeError):
        return None
    return algorithm, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _integer(text: Any) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")
