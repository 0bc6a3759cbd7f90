"""JSON Web Tokens by hand, for those that no library would make."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

SECRET = "5f2b9c1e7a44d08836eab1f0c9d7e2534b6a8f10c3d5e79b" * 2


def kid_of(secret: str = SECRET) -> str:
    """The id that the service gives to that secret."""
    return hashlib.sha256(b"presage kid " + secret.encode()).hexdigest()[:16]


def claims(**changes: Any) -> dict[str, Any]:
    """Those of a good token; a change to None takes one away."""
    now = int(time.time())
    good = {
        "iss": "presage",
        "aud": "presage",
        "sub": "alice",
        "scope": "predict",
        "iat": now,
        "exp": now + 600,
        "jti": "a-token",
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def head(**changes: Any) -> dict[str, Any]:
    """The header of a good token of SECRET; a change to None takes a member away."""
    good = {"alg": "HS256", "typ": "at+jwt", "kid": kid_of()}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def signed(header: Any, payload: Any, secret: str | bytes = SECRET) -> bytes:
    """Both parts, signed with HMAC-SHA256, whatever the header says; text and bytes are taken as they are."""
    message = encoded(header) + b"." + encoded(payload)
    key = secret.encode() if isinstance(secret, str) else secret
    return message + b"." + base64url(hmac.new(key, message, hashlib.sha256).digest())


def token(*, header: Any = None, secret: str | bytes = SECRET, **changes: Any) -> bytes:
    """A good token but for the changes to its claims, and for its header where one is given."""
    return signed(head() if header is None else header, claims(**changes), secret)


def encoded(part: Any) -> bytes:
    """A part as it stands in a token."""
    if isinstance(part, str):
        part = part.encode()
    return base64url(part if isinstance(part, bytes) else json.dumps(part).encode())


def base64url(content: bytes) -> bytes:
    """Without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=")
