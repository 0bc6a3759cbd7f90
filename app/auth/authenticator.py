"""Authenticator: from a credential to the principal behind it; the second time in a microsecond.

A verified token is remembered until it expires, and forgotten whenever a key, a client or a revocation changes. What a
token or a key permits is never more than its client may now.
"""

import asyncio
import contextlib
import hmac
import time
from typing import Self

import structlog

from app.auth.clients import KEY_PREFIX, hash_key
from app.auth.directory import Directory
from app.auth.issuer import Issuer
from app.auth.keys import Key, KeyRing
from app.auth.principal import Principal, known_scopes
from app.auth.tokens import Claims, InvalidToken, UnknownKey, Verifier, issue
from app.config import AuthSettings
from app.errors import InvalidCredential, Unavailable

log = structlog.get_logger(__name__)

_MOST_REMEMBERED = 10_000
_LOOK_SECONDS = 0.5
_RETRY_SECONDS = 2
_KEY_PREFIX = f"{KEY_PREFIX}_".encode()
_LONGEST_KEY = 128
_EVERYTHING = frozenset({"predict", "feedback", "read", "admin"})

ANONYMOUS = Principal("anonymous", _EVERYTHING)


class Authenticator:
    """Open it as an async context manager: entering starts to follow the keys, leaving ends that."""

    def __init__(self, settings: AuthSettings, directory: Directory, *, production: bool = False) -> None:
        """Raises InvalidSettings where there is no key to work with and none may be made."""
        self.settings = settings
        self._directory = directory
        self._ring = KeyRing(settings, production=production) if settings.auth_mode == "jwt" else None
        self._issuer = Issuer(settings)
        self._verifier = Verifier(self._find, settings.jwt_leeway_seconds)
        self._remembered: dict[bytes, tuple[Principal, float]] = {}
        self._number = -1
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self.settings.auth_mode == "none":
            log.warning("authentication_off", meaning="everybody who reaches this service may do everything")
        if self._ring is not None:
            self._issuer.__enter__()
            self._following = asyncio.create_task(self._follow(self._ring))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following
            self._issuer.__exit__()

    def bearer(self, token: bytes) -> Principal:
        """Whom a token speaks for. Raises InvalidCredential, or Unavailable when its issuer's keys never came."""
        if token.startswith(_KEY_PREFIX):  # nor is one that was remembered as a key
            raise _invalid("an API key is no token")
        return self._recall(token) or self._verify_token(token)

    def api_key(self, key: bytes) -> Principal:
        """Whom an API key speaks for. Raises InvalidCredential, or Unavailable when the keys were never read."""
        if not key.startswith(_KEY_PREFIX) or len(key) > _LONGEST_KEY:
            raise _invalid("form")
        return self._recall(key) or self._verify_key(key)

    def platform(self, identity: str) -> Principal:
        """Whoever a trusted proxy names: a client that is registered, or anybody, with what the settings permit."""
        client = self._directory.snapshot.clients.get(identity)
        if client is None:
            return Principal(identity, known_scopes(self.settings.platform_scopes))
        if client.disabled:
            raise _invalid("the client is disabled")
        return Principal(identity, client.scopes, client.plan)

    def issue(self, subject: str, scopes: frozenset[str], seconds: int) -> str:
        """A token. Raises Unavailable where no key can sign."""
        key = self._ring.signing_key() if self._ring is not None else None
        if key is None:
            raise Unavailable("this service has no key that signs; tokens come from its issuer")
        client = self._directory.snapshot.clients.get(subject)
        # In the second in which its older tokens were revoked, a new one counts as of the next.
        now = max(time.time(), client.tokens_not_before if client is not None else 0.0)
        return issue(key, subject, scopes, now=now, seconds=seconds)

    def _recall(self, credential: bytes) -> Principal | None:
        # Each of them only grows, so their sum is another whenever one of them is.
        number = self._directory.number + self._issuer.number
        if self._ring is not None:
            number += self._ring.number
        if number != self._number:
            self._remembered.clear()
            self._number = number
        known = self._remembered.get(credential)
        return known[0] if known is not None and time.time() < known[1] else None

    def _remember(self, credential: bytes, principal: Principal, until: float) -> Principal:
        if len(self._remembered) >= _MOST_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[credential] = (principal, until)
        return principal

    def _find(self, kid: str) -> Key | None:
        return (self._ring.find(kid) if self._ring is not None else None) or self._issuer.find(kid)

    def _verify_token(self, token: bytes) -> Principal:
        try:
            claims = self._verifier.verify(token, time.time())
        except UnknownKey:
            if self._issuer.awaited:
                raise Unavailable("the issuer's keys have not come yet", retry_after=_RETRY_SECONDS) from None
            raise _invalid("unknown key") from None
        except InvalidToken as error:
            raise _invalid(str(error)) from None
        return self._remember(token, self._principal_of(claims), claims.expires_at)

    def _principal_of(self, claims: Claims) -> Principal:
        snapshot = self._directory.snapshot
        if claims.jti in snapshot.revoked:
            raise _invalid("revoked")
        if claims.issuer != self.settings.jwt_issuer:
            # Another issuer's names are its own: none of them is one of our clients.
            return Principal(f"{claims.issuer}#{claims.subject}", claims.scopes)
        client = snapshot.clients.get(claims.subject)
        if client is None:
            return Principal(claims.subject, claims.scopes)
        if client.disabled or claims.issued_at < client.tokens_not_before:
            raise _invalid("the client is disabled, or its tokens are")
        return Principal(claims.subject, permitted(claims.scopes, client.scopes), client.plan)

    def _verify_key(self, key: bytes) -> Principal:
        if self._directory.state == "never":
            raise Unavailable("API keys have not been read from the database yet", retry_after=_RETRY_SECONDS)
        snapshot = self._directory.snapshot
        identifier = key.split(b"_", 2)[1].decode("ascii", "replace")
        known = snapshot.api_keys.get(identifier)
        given = hash_key(key.decode("latin-1"))
        if known is None or not hmac.compare_digest(known.hash, given):
            raise _invalid("unknown key")
        client = snapshot.clients.get(known.client)
        if client is None or client.disabled or known.revoked or known.expires_at <= time.time():
            raise _invalid("the key is revoked or expired, or its client disabled")
        return self._remember(key, Principal(client.name, client.scopes, client.plan), known.expires_at)

    async def _follow(self, ring: KeyRing) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.to_thread(ring.refresh)


def permitted(wanted: frozenset[str], granted: frozenset[str]) -> frozenset[str]:
    """Of the scopes wanted, those that the granted ones cover; for a verb wanted, what is granted below it."""
    holder = Principal("", granted)
    narrowed = {scope for scope in granted if scope.partition(":")[0] in wanted}
    return frozenset({scope for scope in wanted if holder.may(scope)} | narrowed)


def _invalid(reason: str) -> InvalidCredential:
    """The caller learns no reason; it stands in the log, at a level that a flood does not fill the disk with."""
    log.debug("credential_refused", reason=reason)
    return InvalidCredential("the credential is not valid here")
