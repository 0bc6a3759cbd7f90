"""Tokens: made and verified. The only module that knows python-jose, and it trusts it with signatures alone.

The library takes tokens without an expiry, signatures with junk in them, and algorithms that the token chose; some
inputs make it raise what it does not document. So the form is checked before it, the claims after it, and whatever it
raises means no.
"""

import base64
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from jose import jwk, jws
from jose.backends.base import Key as JoseKey
from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, StringConstraints

from app.auth.keys import Key
from app.auth.principal import known_scopes

TOKEN_TYPE = "at+jwt"  # noqa: S105 -- of RFC 9068, and no secret
LONGEST = 4096
_FORM = re.compile(rb"[A-Za-z0-9_-]{1,1024}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# A claim that a token is something else than one for access: a refresh token, an ID token.
_ACCESS = {"access", "bearer", "at+jwt"}


class InvalidToken(Exception):
    """No: why is nobody's business but the log's."""


class UnknownKey(InvalidToken):
    """It names a key that is not here, or not yet."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says; times are seconds since the epoch."""

    issuer: str
    subject: str
    scopes: frozenset[str]
    issued_at: float
    expires_at: float
    jti: str


_Word = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[\x20-\x7e]+$")]
_Instant = Annotated[int, Field(ge=0)] | Annotated[float, AllowInfNan(allow_inf_nan=False), Field(ge=0)]


class _Header(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    alg: str
    kid: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    typ: str
    # Demands that we would have to heed, and keys or places of keys that the token brings along.
    crit: None = None
    jku: None = None
    x5u: None = None
    jwk: None = None


class _Payload(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    iss: _Word
    sub: _Word
    aud: _Word | list[_Word]
    exp: _Instant
    iat: _Instant
    jti: _Word
    nbf: _Instant = 0
    scope: str = ""
    scp: str | list[str] = ""
    typ: str = "access"


class Verifier:
    """Verifies tokens of the keys that `find` knows; a key's form for the library is made once."""

    def __init__(self, find: Callable[[str], Key | None], leeway: float) -> None:
        """`leeway` is how many seconds `iat` and `nbf` may be ahead of the clock; `exp` has none."""
        self._find = find
        self._leeway = leeway
        self._made: dict[str, tuple[Key, JoseKey]] = {}

    def verify(self, token: bytes, now: float) -> Claims:
        """The claims of a good token. Raises InvalidToken, and nothing else."""
        try:
            return self._verify(token, now)
        except InvalidToken:
            raise
        except Exception as error:  # noqa: BLE001 -- jose raises RecursionError, OverflowError and others at will
            raise InvalidToken(type(error).__name__) from None

    def _verify(self, token: bytes, now: float) -> Claims:
        _check(len(token) <= LONGEST and _FORM.fullmatch(token) is not None, "form")
        head, _, signature = token.split(b".")
        _check(_canonical(signature), "signature is not canonical")
        header = _Header.model_validate_json(_decode(head))
        key = self._find(header.kid)
        if key is None:
            raise UnknownKey(header.kid)
        _check(header.alg == key.algorithm, "algorithm")
        _check(header.typ in key.types, "type")
        payload = jws.verify(token.decode(), self._form_of(key), [key.algorithm])
        return _claims(_Payload.model_validate_json(payload), key, now, self._leeway)

    def _form_of(self, key: Key) -> JoseKey:
        made = self._made.get(key.kid)
        if made is None or made[0] is not key:
            if len(self._made) > 100:  # noqa: PLR2004 -- keys come and go, and this must not only grow
                self._made.clear()
            made = self._made[key.kid] = (key, jwk.construct(_text(key, key.public), key.algorithm))
        return made[1]


def issue(key: Key, subject: str, scopes: frozenset[str], *, now: float, seconds: int) -> str:
    """A token for access, signed with a key that can sign."""
    claims = {
        "iss": key.issuer,
        "aud": key.audience,
        "sub": subject,
        "scope": " ".join(sorted(scopes)),
        "iat": int(now),
        "exp": int(now) + seconds,
        "jti": secrets.token_urlsafe(16),
    }
    if key.private is None:
        raise ValueError(f"the key {key.kid} verifies only")
    form = jwk.construct(_text(key, key.private), key.algorithm)
    signed: str = jws.sign(claims, form, headers={"typ": TOKEN_TYPE, "kid": key.kid}, algorithm=key.algorithm)
    return signed


def read_unverified(token: str) -> tuple[str, float]:
    """`jti` and `exp` of a token that somebody wants to be rid of. Raises InvalidToken."""
    try:
        payload = _Payload.model_validate_json(_decode(token.encode().split(b".")[1]))
    except (IndexError, ValueError):
        raise InvalidToken("form") from None
    return payload.jti, float(payload.exp)


def _claims(payload: _Payload, key: Key, now: float, leeway: float) -> Claims:
    audiences = [payload.aud] if isinstance(payload.aud, str) else payload.aud
    _check(payload.iss == key.issuer, "issuer")
    _check(key.audience in audiences, "audience")
    _check(payload.typ.lower() in _ACCESS, "type")
    _check(now < payload.exp, "expired")
    _check(payload.iat <= now + leeway, "issued in the future")
    _check(payload.nbf <= now + leeway, "not valid yet")
    words = payload.scope.split() + (payload.scp.split() if isinstance(payload.scp, str) else payload.scp)
    issued, expires = float(payload.iat), float(payload.exp)
    return Claims(payload.iss, payload.sub, known_scopes(words), issued, expires, payload.jti)


def _check(good: bool, what: str) -> None:  # noqa: FBT001 -- reads as a sentence
    if not good:
        raise InvalidToken(what)


def _decode(segment: bytes) -> bytes:
    return base64.urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))


def _canonical(segment: bytes) -> bool:
    """Whether it is the one way to write these bytes; the last letter has bits that mean nothing."""
    return base64.urlsafe_b64encode(_decode(segment)).rstrip(b"=") == segment


def _text(key: Key, material: bytes) -> Any:
    """As the library wants it: a secret as bytes, PEM as text."""
    return material if key.algorithm == "HS256" else material.decode()
