"""Redis: a client of the one in REDIS_URL, made so that nobody waits for it.

It neither retries nor queues. Whoever uses it has a way to go on without.
"""

import re
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.config import StorageSettings
from app.errors import InvalidSettings

__all__ = ["Redis", "open_redis"]

# To connect takes a name server, several round trips and, with TLS, arithmetic; an answer takes one round trip.
_CONNECT_SECONDS = 0.25
_ANSWER_SECONDS = 0.05


def open_redis(settings: StorageSettings) -> Redis | None:
    """A client that connects when it is first used, or None where REDIS_URL is empty.

    What it waits for is bounded, unless the address itself says otherwise (`?socket_timeout=0.1`): 250 ms to connect,
    50 ms for bytes of an answer. Raises InvalidSettings, which never repeats the address.
    """
    address = settings.redis_url.get_secret_value().strip()
    if not address:
        return None
    try:
        parts = urlsplit(address)
        client = Redis.from_url(
            address,
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_timeout=_ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
            client_name="presage",
        )
        # Connects to nothing, and knows which options there are.
        client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError):
        raise _refused("must be redis://, rediss:// or unix:// and an address, with no unknown options") from None
    if parts.scheme != "unix" and not re.fullmatch(r"/?[0-9]*", parts.path):
        raise _refused("names databases by number, as in redis://HOST:6379/0")
    return client


def _refused(what: str) -> InvalidSettings:
    return InvalidSettings([f"REDIS_URL: {what}"])
