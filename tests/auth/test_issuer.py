"""The keys of another issuer: which are taken, how they change, and that no request waits for them."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from pydantic import SecretStr, ValidationError

from app.auth.authenticator import Authenticator
from app.auth.clients import Clients
from app.auth.directory import Directory
from app.auth.issuer import Issuer
from app.auth.principal import Principal
from app.auth.tokens import InvalidToken, Verifier
from app.config import AuthSettings, StorageSettings
from app.errors import InvalidCredential, Unavailable
from app.storage.database import Database
from tests.support.issuer import ISSUER, IssuerKey, IssuerServer, ec_key, rsa_key, running_issuer
from tests.support.server import free_port
from tests.support.tokens import SECRET, base64url, claims, head, signed, token

# A new key, or an issuer that is back, is found within a few seconds.
_HANG_SECONDS = 20.0

RSA, EC, NEXT = rsa_key("rsa"), ec_key("ec"), ec_key("next")


@pytest.fixture
def issuer() -> Iterator[IssuerServer]:
    """One that publishes an RSA key and one on P-256."""
    with running_issuer() as server:
        server.publish(EC.published(), RSA.published())
        yield server


def _settings(url: str, **changes: Any) -> AuthSettings:
    own = {"jwt_secret": SecretStr(SECRET), "jwks_url": url, "jwks_issuer": ISSUER}
    return AuthSettings(**{**own, **changes})


def _until(true: Callable[[], bool]) -> float:
    """How many seconds it took to become true."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < _HANG_SECONDS
        time.sleep(0.01)
    return time.monotonic() - started


@contextmanager
def _following(url: str, **changes: Any) -> Iterator[tuple[Issuer, Callable[[bytes], bool]]]:
    """Keys that are followed, and whether a token is taken with them."""
    settings = _settings(url, **changes)
    with Issuer(settings) as issuer:
        verifier = Verifier(issuer.find, settings.jwt_leeway_seconds)

        def taken(given: bytes) -> bool:
            try:
                verifier.verify(given, time.time())
            except InvalidToken:
                return False
            return True

        yield issuer, taken


@contextmanager
def _known(url: str, **changes: Any) -> Iterator[Callable[[bytes], bool]]:
    """The same, once the first keys are there."""
    with _following(url, **changes) as (issuer, taken):
        _until(lambda: not issuer.awaited)
        yield taken


@pytest.mark.parametrize("key", [RSA, EC], ids=["rsa", "ec"])
def test_its_tokens_are_taken(issuer: IssuerServer, key: IssuerKey) -> None:
    """Of both kinds of key, in whatever order they are published, with or without what goes without saying."""
    lists: Sequence[Sequence[Any]] = [
        [EC.published(), RSA.published()],
        [RSA.published(), EC.published()],
        [RSA.published(alg=None, use=None), EC.published(alg=None, use=None, key_ops=["verify"])],
    ]
    for listed in lists:
        issuer.publish(*listed)
        with _known(issuer.url()) as taken:
            assert taken(key.token())
            assert taken(key.token(aud=["other", "presage"], scope="", scp=["predict"]))


def test_what_is_no_key_for_us_is_left_out(issuer: IssuerServer) -> None:
    """Other kinds, uses and algorithms, broken entries, keys that are too small: the good one beside them is taken."""
    secret = base64url(SECRET.encode()).decode()
    unknown: Sequence[Any] = [
        {"kty": "oct", "kid": "secret", "k": secret, "alg": "HS256", "use": "sig"},
        {"kty": "OKP", "crv": "Ed25519", "kid": "okp", "x": "AAAA"},
        {"kty": "RSA", "kid": "empty"},
        {"kty": "RSA", "kid": "zero", "n": "", "e": ""},
        {"kty": "RSA", "kid": "letters", "n": "é", "e": 5},
        {"kty": "EC", "crv": "P-256", "kid": "not on the curve", "x": "AAAA", "y": "AAAA"},
        EC.published(kid="other curve", crv="P-384"),
        RSA.published(kid="encrypts", use="enc"),
        RSA.published(kid="pss", alg="PS256"),
        RSA.published(kid="confused", alg="HS256"),
        EC.published(kid="mixed", alg="RS256"),
        RSA.published(kid=None),
        RSA.published(kid=5),
        RSA.published(kid="\ud800"),
        rsa_key("small", 1024).published(),
        RSA.published(kid="even", n=base64url(b"\x80" + b"\0" * 255).decode()),
        RSA.published(kid="enormous", n=base64url(b"\xff" * 20_000).decode()),
        None,
        [],
        "rsa",
    ]
    issuer.publish(*unknown, EC.published())
    with _known(issuer.url()) as taken:
        assert taken(EC.token())
        kids = [entry["kid"] for entry in unknown if isinstance(entry, dict) and "kid" in entry]
        for kid in kids:
            for key in (RSA, EC):
                assert not taken(key.token(header={"kid": kid})), ascii(kid)
        assert not taken(signed(head(kid="secret"), claims(iss=ISSUER), SECRET))


def test_its_keys_are_good_for_its_own_tokens_only(issuer: IssuerServer) -> None:
    """The issuer and the audience are required, and the service's own name is not theirs to use."""
    with _known(issuer.url()) as taken:
        assert taken(RSA.token())
        assert not taken(RSA.token(iss="presage"))
        assert not taken(RSA.token(iss="https://other.example"))
        assert not taken(RSA.token(iss=None))
        assert not taken(RSA.token(aud=None))
        assert not taken(RSA.token(aud="other"))
        assert not taken(RSA.token(header={"typ": "rt+jwt"}))
        assert not taken(RSA.token(exp=int(time.time())))
    with _known(issuer.url(), jwks_audience="api", jwks_token_types=("JWT",)) as taken:
        assert taken(RSA.token(aud="api", header={"typ": "JWT"}))
        assert not taken(RSA.token(aud="presage", header={"typ": "JWT"}))
        assert not taken(RSA.token(aud="api"))


def test_a_token_has_no_say_in_the_algorithm(issuer: IssuerServer) -> None:
    """A published key is no secret to sign with, and one kind of key is not the other."""
    with _known(issuer.url()) as taken:
        for key in (RSA, EC):
            lines = key.pem().splitlines(keepends=True)
            for secret in (key.pem(), key.pem().strip(), b"".join(lines[1:-1]), json.dumps(key.published())):
                assert not taken(signed(head(kid=key.kid), claims(iss=ISSUER), secret))
            for algorithm in ("none", "HS256", "RS512", "PS256", "ES384", RSA.algorithm, EC.algorithm):
                if algorithm != key.algorithm:
                    assert not taken(key.token(header={"alg": algorithm}))
        assert not taken(RSA.token(header={"kid": "ec"}))
        assert not taken(EC.token(header={"kid": "rsa"}))
        assert taken(RSA.token())
        assert taken(EC.token())


def test_a_new_key_is_found_soon_and_an_old_one_goes(issuer: IssuerServer) -> None:
    """The first token with an unknown key has them fetched; a flood of such tokens does not multiply that."""
    with _following(issuer.url()) as (followed, taken):
        _until(lambda: not followed.awaited)
        assert taken(RSA.token())
        number = followed.number
        issuer.publish(EC.published(), NEXT.published())
        new = NEXT.token()
        seconds = _until(lambda: taken(new))
        assert seconds < _HANG_SECONDS / 2
        assert followed.number > number
        assert not taken(RSA.token())
        assert taken(EC.token())
        fetched = issuer.seen.count("/keys")
        for number in range(500):
            assert not taken(NEXT.token(header={"kid": f"kid-{number}"}))
        issuer.wait_for_requests("/keys", fetched + 1)
        assert issuer.seen.count("/keys") <= fetched + 2


def test_while_it_is_down_its_last_keys_stand(issuer: IssuerServer) -> None:
    """Refused connections, then errors; one line says so, and when it is back a new key is found."""
    unknown = NEXT.token()
    with structlog.testing.capture_logs() as lines, _known(issuer.url()) as taken:
        issuer.stop()
        assert not taken(unknown)
        _until(lambda: "issuer_unreachable" in [line["event"] for line in lines])
        assert taken(RSA.token())
        issuer.say("/keys", b"", status=500)
        issuer.start()
        fetched = issuer.seen.count("/keys")
        assert not taken(unknown)
        issuer.wait_for_requests("/keys", fetched + 1)
        assert taken(RSA.token())
        issuer.publish(NEXT.published())
        _until(lambda: taken(unknown))
    events = [(line["event"], line["log_level"]) for line in lines]
    assert events == [("issuer_keys_read", "info"), ("issuer_unreachable", "warning"), ("issuer_keys_read", "info")]


BAD_ANSWERS: dict[str, dict[str, Any]] = {
    "an error": {"status": 500},
    "a document behind an error": {"status": 503, "body": json.dumps({"keys": [RSA.published()]}).encode()},
    "a document that is none": {"status": 204},
    "no JSON": {"body": b"<html>"},
    "no UTF-8": {"body": b"\xff\xfe\xfd"},
    "no object": {"body": b"[1]"},
    "no list": {"body": b'{"keys": {"kid": 1}}'},
    "no keys": {"body": b"{}"},
    "brackets": {"body": b"[" * 200_000},
    "a huge number": {"body": b'{"keys": 1' + b"0" * 100_000 + b"}"},
    "300 KB": {"body": json.dumps({"keys": [RSA.published()], "more": "x" * (300 << 10)}).encode()},
    "one that hangs": {"hanging": True},
    "one that drips": {"dripping": True},
}


def test_a_bad_answer_gives_no_keys_and_is_asked_for_again(issuer: IssuerServer) -> None:
    """Whatever it is: a good document at the same place is read a few seconds later."""
    paths = {f"/{number}": name for number, name in enumerate(BAD_ANSWERS)}
    for path, name in paths.items():
        issuer.say(path, **{"body": b"", **BAD_ANSWERS[name]})

    def recovered(path: str) -> None:
        with _following(issuer.url(path)) as (followed, taken):
            issuer.wait_for_requests(path, 1)
            assert not taken(RSA.token()), paths[path]
            assert followed.number == 0, paths[path]
            issuer.publish(RSA.published(), path=path)
            _until(lambda: taken(RSA.token()))

    with ThreadPoolExecutor(len(paths)) as threads:
        list(threads.map(recovered, paths))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(issuer: IssuerServer, status: int) -> None:
    """Not even to the very keys: the target is never asked."""
    with running_issuer() as target:
        target.publish(RSA.published())
        issuer.say("/moved", status=status, headers=(("Location", target.url()),))
        with (
            structlog.testing.capture_logs() as lines,
            _following(issuer.url("/moved")) as (followed, taken),
        ):
            _until(lambda: bool(lines))
            assert not taken(RSA.token())
            assert followed.number == 0
        assert target.seen == []
        assert lines[0]["reason"] == f"status {status}"


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "0.0.0.0", "224.0.0.1"])
def test_where_clouds_keep_their_secrets_nobody_asks(host: str) -> None:
    """Nor at any other address that is no issuer's: one line says so, before any connection."""
    with structlog.testing.capture_logs() as lines, _following(f"https://{host}:1/keys") as (followed, _):
        _until(lambda: bool(lines))
        assert followed.number == 0
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("issuer_unreachable", "warning")
    assert "address" in line["reason"]


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.example/keys",
        "http://10.0.0.1/keys",
        "http://localhost.example/keys",
        "http://127.0.0.1.example/keys",
        "http://localhost:80@issuer.example/keys",
        "http://127.0.0.1:80@issuer.example/keys",
        "file:///etc/passwd",
        "ftp://issuer.example/keys",
        "issuer.example/keys",
        "https://",
    ],
)
def test_keys_come_over_tls_or_from_this_machine(url: str) -> None:
    """Anybody in between could have changed them."""
    with pytest.raises(ValidationError):
        _settings(url)


def test_keys_need_the_name_of_their_issuer() -> None:
    """Whose tokens they sign must be said, and it is not this service."""
    with pytest.raises(ValidationError):
        _settings("https://issuer.example/keys", jwks_issuer="")
    with pytest.raises(ValidationError):
        _settings("https://issuer.example/keys", jwks_issuer="presage")


def _asking(url: str, database: Database, ask: Callable[[Authenticator], None]) -> None:
    async def run() -> None:
        async with Directory(database) as directory, Authenticator(_settings(url), directory) as authenticator:
            await asyncio.to_thread(ask, authenticator)

    asyncio.run(run())


@pytest.fixture
def one_database(sqlite_url: str) -> Iterator[Database]:
    """Migrated."""
    with Database(StorageSettings(database_url=SecretStr(sqlite_url))) as opened:
        yield opened


def test_an_issuer_that_never_came_is_no_refusal(one_database: Database) -> None:
    """Its tokens may be good: 503. What does not need it is judged as ever: taken, or refused."""

    def ask(authenticator: Authenticator) -> None:
        with pytest.raises(Unavailable) as refused:
            authenticator.bearer(RSA.token())
        assert refused.value.retry_after
        assert authenticator.bearer(token()).subject == "alice"
        for own in (token(exp=int(time.time()) - 1), token(jti="spoilt") + b"A", b"no token"):
            with pytest.raises(InvalidCredential):
                authenticator.bearer(own)

    _asking(f"http://127.0.0.1:{free_port()}/keys", one_database, ask)


def test_its_subjects_are_never_our_clients(issuer: IssuerServer, one_database: Database) -> None:
    """A name that both have means two: no plan, no scope and no fate is shared."""
    clients = Clients(one_database)
    clients.add("batch", by="root", scopes=["predict", "admin"], plan="5/minute")
    clients.add("gone", by="root")
    clients.disable("gone", by="root")
    clients.revoke_token("revoked", datetime.now(UTC) + timedelta(hours=1), by="root")

    def ask(authenticator: Authenticator) -> None:
        _until(lambda: _answered(authenticator))
        theirs = authenticator.bearer(RSA.token(sub="batch", scope="predict openid"))
        assert theirs == Principal(f"{ISSUER}#batch", frozenset({"predict"}))
        assert authenticator.bearer(EC.token(sub="gone")).subject == f"{ISSUER}#gone"
        assert authenticator.bearer(token(sub="batch", scope="predict")).plan == "5/minute"
        with pytest.raises(InvalidCredential):
            authenticator.bearer(RSA.token(jti="revoked"))

    _asking(issuer.url(), one_database, ask)


def test_what_is_remembered_goes_with_its_key(issuer: IssuerServer, one_database: Database) -> None:
    """A token that was taken is refused once its key is withdrawn."""

    def ask(authenticator: Authenticator) -> None:
        good = RSA.token()
        _until(lambda: _answered(authenticator))
        assert authenticator.bearer(good).scopes == {"predict"}
        issuer.publish(NEXT.published())
        _until(lambda: _taken(authenticator, NEXT.token()))
        assert not _taken(authenticator, good)

    _asking(issuer.url(), one_database, ask)


def _answered(authenticator: Authenticator) -> bool:
    try:
        authenticator.bearer(RSA.token())
    except Unavailable:
        return False
    return True


def _taken(authenticator: Authenticator, given: bytes) -> bool:
    try:
        authenticator.bearer(given)
    except InvalidCredential:
        return False
    return True
