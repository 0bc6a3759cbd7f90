"""Authenticator: what is remembered is cheap, and forgotten as soon as it is no longer true."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from app.auth.authenticator import Authenticator, permitted
from app.auth.clients import Clients
from app.auth.directory import Directory
from app.auth.principal import Principal
from app.config import AuthSettings, StorageSettings
from app.errors import InvalidCredential, PresageError, Unavailable
from app.storage.database import Database
from app.storage.migrations import upgrade
from tests.support.postgres import Postgres, running_postgres
from tests.support.tokens import SECRET, head, kid_of, token

OTHER_SECRET = SECRET[::-1]
_HANG_SECONDS = 20.0


def _settings(**changes: Any) -> AuthSettings:
    return AuthSettings(**{"jwt_secret": SecretStr(SECRET), **changes})


@asynccontextmanager
async def _opened(database: Database, **changes: Any) -> AsyncIterator[Authenticator]:
    """One with a directory of its own, as each process has."""
    async with Directory(database) as directory, Authenticator(_settings(**changes), directory) as authenticator:
        yield authenticator


@pytest.fixture
def one_database(sqlite_url: str) -> Iterator[Database]:
    """For what has nothing to do with the kind of database."""
    with Database(StorageSettings(database_url=SecretStr(sqlite_url))) as opened:
        yield opened


def _refused(ask: Callable[[], Principal]) -> bool:
    try:
        ask()
    except InvalidCredential:
        return True
    return False


async def _until(true: Callable[[], bool]) -> float:
    """How many seconds it took to become true."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < _HANG_SECONDS
        await asyncio.sleep(0.005)
    return time.monotonic() - started


def test_a_remembered_token_is_much_cheaper(one_database: Database) -> None:
    """The second time nothing is verified: at most a fifth of what the first time takes."""
    given_tokens = [token(jti=f"token-{number}") for number in range(200)]

    def best(authenticator: Authenticator) -> float:
        seconds = []
        for one in given_tokens:
            started = time.perf_counter()
            authenticator.bearer(one)
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    async def run() -> None:
        async with _opened(one_database) as authenticator:
            first = best(authenticator)
            assert best(authenticator) < first / 5

    asyncio.run(run())


def test_a_remembered_token_is_forgotten_at_its_expiry(one_database: Database) -> None:
    """In the last second it is good, and in the next it is not."""
    now = int(time.time())
    good = token(exp=now + 600)

    async def run() -> None:
        async with _opened(one_database) as authenticator:
            with time_machine.travel(now, tick=False) as clock:
                assert authenticator.bearer(good).subject == "alice"
                clock.move_to(now + 599)
                assert authenticator.bearer(good).subject == "alice"
                clock.move_to(now + 600)
                assert _refused(lambda: authenticator.bearer(good))

    asyncio.run(run())


def test_a_remembered_key_is_forgotten_at_its_expiry(one_database: Database) -> None:
    """As a token is."""
    clients = Clients(one_database)
    clients.add("batch", by="root")
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    key = clients.add_key("batch", by="root", expires_at=expires).encode()

    async def run() -> None:
        async with _opened(one_database) as authenticator:
            assert authenticator.api_key(key).subject == "batch"
            with time_machine.travel(expires - timedelta(seconds=1), tick=False) as clock:
                assert authenticator.api_key(key).subject == "batch"
                clock.move_to(expires)
                assert _refused(lambda: authenticator.api_key(key))

    asyncio.run(run())


def test_what_has_changed_elsewhere_bites_within_a_second(
    database: Database, storage_settings: StorageSettings, tmp_path: Path
) -> None:
    """Remembered or not: a revocation, fewer scopes, a client disabled, a key revoked, a signing key removed."""
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "other.secret").write_text(OTHER_SECRET)
    clients = Clients(database)
    for name in ("ann", "ben", "cat"):
        clients.add(name, by="root", scopes=["predict", "read"])
    key = clients.add_key("cat", by="root")
    revoked, wide, disabled = token(jti="revoked"), token(sub="ann", scope="predict read"), token(sub="ben")
    removed = token(header=head(kid=kid_of(OTHER_SECRET)), secret=OTHER_SECRET)
    expires = datetime.now(UTC) + timedelta(hours=1)

    async def run() -> list[float]:
        with Database(storage_settings) as other:
            async with _opened(other, jwt_keys_dir=keys) as there:
                for one in (revoked, wide, disabled, removed):
                    there.bearer(one)
                there.api_key(key.encode())
                seconds = []
                clients.revoke_token("revoked", expires, by="root")
                seconds.append(await _until(lambda: _refused(lambda: there.bearer(revoked))))
                clients.change("ann", by="root", scopes=["predict:iris"])
                seconds.append(await _until(lambda: there.bearer(wide).scopes == {"predict:iris"}))
                clients.disable("ben", by="root")
                seconds.append(await _until(lambda: _refused(lambda: there.bearer(disabled))))
                clients.revoke_key(key.split("_")[1], by="root")
                seconds.append(await _until(lambda: _refused(lambda: there.api_key(key.encode()))))
                (keys / "other.secret").unlink()
                seconds.append(await _until(lambda: _refused(lambda: there.bearer(removed))))
                return seconds

    seconds = asyncio.run(run())
    assert sorted(seconds)[2] < 1, seconds


def test_tokens_from_before_a_client_was_disabled_stay_refused(one_database: Database) -> None:
    """Enabled again, it needs another token, and gets one that is good."""
    clients = Clients(one_database)
    clients.add("batch", by="root")
    now = int(time.time())
    old, new = token(sub="batch", iat=now - 5), token(sub="batch", iat=now + 5, jti="another")
    clients.disable("batch", by="root")
    clients.enable("batch", by="root")

    async def run() -> None:
        async with _opened(one_database) as authenticator:
            assert _refused(lambda: authenticator.bearer(old))
            assert authenticator.bearer(new).subject == "batch"

    asyncio.run(run())


def test_what_is_remembered_is_bounded(one_database: Database) -> None:
    """The oldest makes room, and is verified again when it comes."""
    tokens = [token(jti=f"token-{number}") for number in range(10_050)]

    async def run() -> None:
        async with _opened(one_database) as authenticator:
            for one in tokens:
                authenticator.bearer(one)
            assert len(authenticator._remembered) == 10_000
            assert tokens[0] not in authenticator._remembered
            assert authenticator.bearer(tokens[0]).subject == "alice"
            assert len(authenticator._remembered) == 10_000

    asyncio.run(run())


def test_what_is_refused_is_not_remembered(one_database: Database) -> None:
    """Whoever guesses takes no memory."""

    async def run() -> None:
        async with _opened(one_database) as authenticator:
            for number in range(100):
                bad = token(jti=f"{number}", secret=OTHER_SECRET)
                assert _refused(lambda bad=bad: authenticator.bearer(bad))  # type: ignore[misc]
                guess = f"presage_abcdefghijkl_{number}".encode()
                assert _refused(lambda guess=guess: authenticator.api_key(guess))  # type: ignore[misc]
            assert not authenticator._remembered

    asyncio.run(run())


def test_a_key_speaks_for_its_client(one_database: Database) -> None:
    """With the scopes and the plan that the client has now."""
    clients = Clients(one_database)
    clients.add("batch", by="root", scopes=["predict:iris", "read"], plan="5/minute")
    key = clients.add_key("batch", by="root", expires_at=datetime.now(UTC) + timedelta(days=1)).encode()

    async def run() -> None:
        async with _opened(one_database) as authenticator:
            for _ in range(2):
                expected = Principal("batch", frozenset({"predict:iris", "read"}), "5/minute")
                assert authenticator.api_key(key) == expected
            clients.change("batch", by="root", scopes=["feedback"], plan=None)
            await _until(lambda: authenticator.api_key(key) == Principal("batch", frozenset({"feedback"})))

    asyncio.run(run())


def test_no_other_key_is_taken(one_database: Database) -> None:
    """Wrong, revoked, of a disabled client, or in no form that keys have: the answer is one."""
    clients = Clients(one_database)
    for name in ("batch", "gone"):
        clients.add(name, by="root")
    good, revoked, gone = (clients.add_key(name, by="root") for name in ("batch", "batch", "gone"))
    clients.revoke_key(revoked.split("_")[1], by="root")
    clients.disable("gone", by="root")
    identifier = good.split("_")[1]
    wrong = [revoked, gone, good[:-1], good + "A", good.upper(), good.swapcase(), good.replace("presage", "Presage")]
    malformed = ["", "presage", "presage_", "presage__", "presage_x", "presage_x_y", f"presage_{identifier}"]
    hostile = [f"presage_{identifier}_é", f"presage_é_{good}", f"presage_{identifier}_\0", f" {good}", "é" * 40]
    huge = ["presage_" + "x" * 10_240, good + "A" * 10_240]
    nearly = [f"presage_{identifier}_", f"presage_{identifier}_{revoked.split('_', 2)[2]}"]

    async def run() -> set[str]:
        async with _opened(one_database) as authenticator:
            assert authenticator.api_key(good.encode()).subject == "batch"
            details = set()
            for one in [*wrong, *malformed, *hostile, *huge, *nearly]:
                with pytest.raises(InvalidCredential) as refused:
                    authenticator.api_key(one.encode("latin-1"))
                details.add(str(refused.value))
        return details

    assert len(asyncio.run(run())) == 1


def test_a_token_is_no_key_and_a_key_no_token(one_database: Database) -> None:
    """Also after it was shown in its own way, and is remembered."""
    clients = Clients(one_database)
    clients.add("batch", by="root")
    key = clients.add_key("batch", by="root").encode()

    async def run() -> None:
        async with _opened(one_database) as authenticator:
            good = token()
            for _ in range(2):
                assert _refused(lambda: authenticator.api_key(good))
                assert _refused(lambda: authenticator.bearer(key))
                authenticator.bearer(good)
                authenticator.api_key(key)

    asyncio.run(run())


def test_keys_that_were_never_read_are_no_wrong_keys(empty_sqlite_url: str) -> None:
    """They are asked for again later; tokens need no database."""
    url = SecretStr(empty_sqlite_url)

    async def run() -> None:
        with Database(StorageSettings(database_url=url)) as database:
            async with _opened(database) as authenticator:
                with pytest.raises(Unavailable) as refused:
                    authenticator.api_key(b"presage_abcdefghijkl_x")
                assert refused.value.status == 503
                assert refused.value.retry_after
                assert authenticator.bearer(token()).subject == "alice"
                upgrade(StorageSettings(database_url=url))
                Clients(database).add("batch", by="root")
                key = Clients(database).add_key("batch", by="root").encode()
                await _until(lambda: _taken(lambda: authenticator.api_key(key)))

    asyncio.run(run())


def _taken(ask: Callable[[], Principal]) -> bool:
    try:
        ask()
    except PresageError:
        return False
    return True


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A migrated server that a test may hurt."""
    with running_postgres(durable=True) as server:
        upgrade(StorageSettings(database_url=SecretStr(server.url())))
        yield server


def test_while_the_database_is_down_credentials_stay_what_they_were(own_postgres: Postgres) -> None:
    """Good ones are taken, also those that come for the first time, and refused ones refused."""

    async def run() -> None:
        with Database(StorageSettings(database_url=SecretStr(own_postgres.url()))) as database:
            clients = Clients(database)
            clients.add("batch", by="root")
            clients.add("gone", by="root")
            clients.disable("gone", by="root")
            key = clients.add_key("batch", by="root").encode()
            clients.revoke_token("revoked", datetime.now(UTC) + timedelta(hours=1), by="root")
            async with Directory(database) as directory, Authenticator(_settings(), directory) as authenticator:
                own_postgres.kill()
                await _until(lambda: directory.state == "stale")
                assert authenticator.bearer(token(sub="batch")).subject == "batch"
                assert authenticator.api_key(key).subject == "batch"
                assert _refused(lambda: authenticator.bearer(token(sub="gone")))
                assert _refused(lambda: authenticator.bearer(token(jti="revoked")))

    asyncio.run(run())


_SCOPES = st.frozensets(
    st.sampled_from(["predict", "predict:iris", "predict:sentiment", "feedback", "read", "admin"]), max_size=5
)


@given(_SCOPES, _SCOPES, st.sampled_from(["predict", "predict:iris", "predict:wine", "feedback", "read", "admin"]))
def test_a_token_permits_what_both_it_and_its_client_permit(
    wanted: frozenset[str], granted: frozenset[str], scope: str
) -> None:
    """No more than either, and no less than both."""
    both = Principal("", wanted).may(scope) and Principal("", granted).may(scope)
    assert Principal("", permitted(wanted, granted)).may(scope) is both


def test_a_key_that_only_verifies_issues_nothing(one_database: Database, tmp_path: Path) -> None:
    """That is another service's business, so it is no refusal but a 503."""
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "ours.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    async def run() -> None:
        async with _opened(one_database, jwt_secret=SecretStr(""), jwt_keys_dir=keys) as authenticator:
            with pytest.raises(Unavailable):
                authenticator.issue("batch", frozenset({"predict"}), 60)

    asyncio.run(run())


def test_what_is_issued_is_taken(one_database: Database) -> None:
    """With its scopes, for its client's name, by every process that has the key."""
    Clients(one_database).add("batch", by="root", scopes=["predict", "read"])

    async def run() -> None:
        async with _opened(one_database) as here, _opened(one_database) as there:
            issued = here.issue("batch", frozenset({"predict:iris"}), 60).encode()
            assert there.bearer(issued) == Principal("batch", frozenset({"predict:iris"}))

    asyncio.run(run())


def test_whom_a_platform_names_may_what_the_settings_say(one_database: Database) -> None:
    """A client that is registered has its own scopes and plan, and a disabled one none."""
    clients = Clients(one_database)
    clients.add("ann", by="root", scopes=["read"], plan="5/minute")
    clients.add("gone", by="root")
    clients.disable("gone", by="root")
    platform = {"auth_mode": "platform", "platform_header": "X-User", "platform_scopes": ("predict", "nonsense")}

    async def run() -> None:
        async with _opened(one_database, **platform) as authenticator:
            assert authenticator.platform("ann") == Principal("ann", frozenset({"read"}), "5/minute")
            assert authenticator.platform("somebody") == Principal("somebody", frozenset({"predict"}))
            assert _refused(lambda: authenticator.platform("gone"))

    asyncio.run(run())
