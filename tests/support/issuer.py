"""Somebody else who makes tokens: a real HTTP server on the loopback that publishes keys, well and badly."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.server import free_port
from tests.support.tokens import base64url, claims, encoded

ISSUER = "https://issuer.example"
_HANG_SECONDS = 30.0
_DRIP_SECONDS = 0.2
_ENDLESS = 200_000


@dataclass(frozen=True)
class IssuerKey:
    """A key of the issuer's: what it publishes, and tokens that it signs."""

    kid: str
    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def algorithm(self) -> str:
        """The one that goes with the key."""
        return "RS256" if isinstance(self.private, rsa.RSAPrivateKey) else "ES256"

    def published(self, **changes: Any) -> dict[str, Any]:
        """As it stands in a JWKS; a change to None takes a member away."""
        public = self.private.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            rsa_numbers = public.public_numbers()
            own = {"kty": "RSA", "n": _number(rsa_numbers.n), "e": _number(rsa_numbers.e)}
        else:
            numbers = public.public_numbers()
            own = {"kty": "EC", "crv": "P-256", "x": _number(numbers.x, 32), "y": _number(numbers.y, 32)}
        entry = {"kid": self.kid, "use": "sig", "alg": self.algorithm, **own, **changes}
        return {name: value for name, value in entry.items() if value is not None}

    def pem(self) -> bytes:
        """What everybody knows of it."""
        return self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def token(self, *, header: dict[str, Any] | None = None, **changes: Any) -> bytes:
        """A good token, but for the changes to its header and claims."""
        head = {"alg": self.algorithm, "typ": "at+jwt", "kid": self.kid, **(header or {})}
        message = encoded(head) + b"." + encoded(claims(**{"iss": ISSUER, **changes}))
        return message + b"." + base64url(self._signature(message))

    def _signature(self, message: bytes) -> bytes:
        if isinstance(self.private, rsa.RSAPrivateKey):
            return self.private.sign(message, padding.PKCS1v15(), SHA256())
        r, s = decode_dss_signature(self.private.sign(message, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def rsa_key(kid: str, bits: int = 2048) -> IssuerKey:
    """A new one."""
    return IssuerKey(kid, rsa.generate_private_key(65537, bits))


def ec_key(kid: str) -> IssuerKey:
    """A new one, on P-256."""
    return IssuerKey(kid, ec.generate_private_key(ec.SECP256R1()))


@dataclass(frozen=True)
class Answer:
    """What the server says at one path."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    hanging: bool = False
    dripping: bool = False


class IssuerServer:
    """Answers at `/keys` with what it publishes, and elsewhere with what a test has put there; `seen` are the paths."""

    def __init__(self) -> None:
        """Not started yet; its port stays the same over restarts."""
        self.port = free_port()
        self.seen: list[str] = []
        self._answers: dict[str, Answer] = {}
        self._ending = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    def url(self, path: str = "/keys") -> str:
        """The address of a document."""
        return f"http://127.0.0.1:{self.port}{path}"

    def publish(self, *entries: Any, path: str = "/keys") -> None:
        """From now on these are the keys."""
        self.say(path, json.dumps({"keys": entries}).encode())

    def say(self, path: str, body: bytes = b"", **rest: Any) -> None:
        """From now on this is the answer there; see `Answer`."""
        self._answers[path] = Answer(body, **rest)

    def wait_for_requests(self, path: str, number: int) -> None:
        """Return once there have been so many."""
        deadline = time.monotonic() + _HANG_SECONDS
        while self.seen.count(path) < number:
            assert time.monotonic() < deadline, self.seen
            time.sleep(0.01)

    def start(self) -> None:
        """Listen."""
        self._ending.clear()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Nobody listens any more."""
        if self._server is not None:
            self._ending.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.seen.append(self.path)
                answer = issuer._answers.get(self.path, Answer(b"", 404))
                if answer.hanging:
                    issuer._ending.wait(_HANG_SECONDS)
                    return
                self.send_response(answer.status)
                for name, value in (
                    *answer.headers,
                    ("Content-Length", str(_ENDLESS if answer.dripping else len(answer.body))),
                ):
                    self.send_header(name, value)
                self.end_headers()
                while answer.dripping and not issuer._ending.wait(_DRIP_SECONDS):
                    try:
                        self.wfile.write(b" ")  # without end, and never so slow that a read takes long
                    except OSError:
                        return
                self.wfile.write(answer.body)

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        return Handler


@contextmanager
def running_issuer() -> Iterator[IssuerServer]:
    """A started server, gone at the end."""
    server = IssuerServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _number(value: int, length: int | None = None) -> str:
    return base64url(value.to_bytes(length or (value.bit_length() + 7) // 8, "big")).decode()
