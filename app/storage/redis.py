"""Redis: a client of the one in REDIS_URL, made so that nobody waits for it.

It neither retries nor queues. Whoever uses it has a way to go on without.
"""

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
        if urlsplit(address).scheme not in ("redis", "rediss", "unix"):
            raise _refused("must begin with redis://, rediss:// or unix://")
        return Redis.from_url(
            address,
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_timeout=_ANSWER_SECONDS,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
            client_name="presage",
        )
    except ValueError:
        raise _refused("is no address; it must be redis://USER:PASSWORD@HOST:PORT/NUMBER") from None


def _refused(what: str) -> InvalidSettings:
    return InvalidSettings([f"REDIS_URL: {what}"])
