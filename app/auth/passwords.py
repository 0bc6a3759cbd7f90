"""Passwords: the secrets of clients, hashed so that a stolen database does not give them away.

A hash costs 20 ms and 19 MiB on purpose, so that guessing is slow. What is slow on purpose is a lever for whoever wants
to stop us: so two are computed at once, on threads of their own, a few more wait, and the rest is refused.
"""

import asyncio
import secrets
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import structlog
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from app.errors import Overloaded

log = structlog.get_logger(__name__)

AT_ONCE = 2
MOST_WAITING = 16
_RETRY_SECONDS = 1
# argon2id; more than one lane would take threads from predictions.
_HASHER = PasswordHasher(memory_cost=19 << 10, time_cost=2, parallelism=1)


def hash_secret(secret: str) -> str:
    """An argon2id hash with its salt and parameters; takes 20 ms of the calling thread."""
    return _HASHER.hash(_bytes(secret))


class Passwords:
    """Verifies secrets off the event loop, a bounded number at a time. A context manager closes it."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="passwords")
        self._places = threading.BoundedSemaphore(AT_ONCE + MOST_WAITING)
        self._nobodys = hash_secret(secrets.token_urlsafe())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # A hash that is being computed ends within milliseconds; those that wait are not begun.
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def verify(self, secret_hash: str | None, secret: str) -> bool:
        """Whether the secret is the one that was hashed; never for None, which takes as long. Raises Overloaded.

        The hash of a client that does not exist is None: how long the answer takes tells nobody which names there are.
        """
        if not self._places.acquire(blocking=False):
            raise Overloaded("too many secrets are being verified", retry_after=_RETRY_SECONDS)
        future = self._threads.submit(_matches, secret_hash or self._nobodys, secret)
        # Not when we stop waiting for it: a caller who has gone leaves a thread that is still busy.
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future) and secret_hash is not None


def _matches(secret_hash: str, secret: str) -> bool:
    try:
        return _HASHER.verify(secret_hash, _bytes(secret))
    except VerifyMismatchError:
        return False
    except (VerificationError, InvalidHashError) as error:  # what is kept is damaged, or memory is short
        log.error("secret_not_verified", reason=str(error))
        return False


def _bytes(secret: str) -> bytes:
    """One way to write a letter with an accent, whatever keyboard it came from; and no text that cannot be written."""
    return unicodedata.normalize("NFC", secret).encode("utf-8", "surrogatepass")
