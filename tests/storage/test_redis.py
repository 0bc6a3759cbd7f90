"""The client of Redis: which addresses it takes, and that it waits for nothing."""

import asyncio
import time

import pytest
from pydantic import SecretStr

from app.config import StorageSettings
from app.errors import InvalidSettings
from app.storage.redis import open_redis
from tests.support.valkey import running_valkey


@pytest.mark.parametrize(
    "address",
    [
        "http://:secret@host",
        "secret",
        "redis://:secret@host:port",
        "redis://:secret@host:70000",
        "redis://:secret@[::1",
        "redis://:secret@host?socket_timeout=soon",
        "redis://:secret@host/zero",
        "redis://:secret@host?colour=secret",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_and_not_repeated(address: str) -> None:
    """At the start, naming the variable and what it should be."""
    with pytest.raises(InvalidSettings) as refused:
        open_redis(_settings(address))
    assert "REDIS_URL: " in str(refused.value)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_without_an_address_there_is_no_client() -> None:
    """Empty is the default, and spaces are as good as that."""
    assert open_redis(StorageSettings()) is None
    assert open_redis(_settings("  ")) is None


@pytest.mark.parametrize("address", ["redis://host", "rediss://user:p%40ss@host:1/2", "unix:///run/redis.sock?db=1"])
def test_the_usual_addresses_are_taken(address: str) -> None:
    """In plain, with TLS, and as a socket of this machine; nothing is connected yet."""
    assert open_redis(_settings(address)) is not None


def test_a_server_that_is_frozen_is_given_up_quickly() -> None:
    """Neither a new connection nor one that is open waits for it."""

    async def run() -> list[float]:
        seconds = []
        with running_valkey() as valkey:
            client = open_redis(valkey.settings)
            assert client is not None
            assert await client.set("key", "value")
            valkey.freeze()
            for _ in range(3):
                began = time.monotonic()
                with pytest.raises(Exception, match="imeout"):
                    await client.get("key")
                seconds.append(time.monotonic() - began)
            valkey.thaw()
            assert await client.get("key") == b"value"
            await client.aclose()
        return seconds

    assert max(asyncio.run(run())) < 2


def _settings(address: str) -> StorageSettings:
    return StorageSettings(redis_url=SecretStr(address))
