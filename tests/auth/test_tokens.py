"""Tokens: what is good is taken, and everything else is refused in the same way."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from pydantic import SecretStr

from app.auth.keys import KeyRing
from app.auth.tokens import InvalidToken, Verifier, issue, read_unverified
from app.config import AuthSettings
from tests.support.tokens import SECRET, base64url, claims, encoded, head, kid_of, signed, token

NOW = 1_800_000_000
LEEWAY = 30


def at_now(**changes: Any) -> bytes:
    """A good token at NOW, but for the changes."""
    return token(**{"iat": NOW, "exp": NOW + 600, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of each kind, in files."""
    folder = tmp_path_factory.mktemp("keys")
    private: Any
    for name, private in (
        ("rsa", rsa.generate_private_key(65537, 2048)),
        ("ec", ec.generate_private_key(ec.SECP256R1())),
    ):
        content = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{name}.pem").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def ring(folder: Path) -> KeyRing:
    """The secret, an RSA key and one on P-256."""
    return KeyRing(AuthSettings(jwt_secret=SecretStr(SECRET), jwt_keys_dir=folder), production=True)


@pytest.fixture
def verify(ring: KeyRing) -> Callable[..., Any]:
    """Verify at NOW."""
    verifier = Verifier(ring.find, LEEWAY)
    return lambda given, now=NOW: verifier.verify(given, now)


@pytest.mark.parametrize("kid", [kid_of(), "rsa", "ec"])
def test_a_token_of_each_kind_of_key_is_taken(ring: KeyRing, verify: Callable[..., Any], kid: str) -> None:
    """What one process issues, every process with the key verifies."""
    key = ring.find(kid)
    assert key is not None
    given = issue(key, "alice", frozenset({"predict:iris", "read"}), now=NOW, seconds=60)
    found = verify(given.encode())
    assert (found.subject, found.scopes, found.expires_at) == ("alice", {"predict:iris", "read"}, NOW + 60)
    assert read_unverified(given) == (found.jti, NOW + 60)


def test_a_token_made_by_hand_is_taken(verify: Callable[..., Any]) -> None:
    """The one that the tests below spoil is good."""
    assert verify(at_now()).subject == "alice"
    assert verify(at_now(aud=["other", "presage"], scp=["read"], scope="")).scopes == {"read"}


def _public_pem(folder: Path) -> bytes:
    public = load_pem_private_key((folder / "rsa.pem").read_bytes(), None).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _public_der(folder: Path) -> bytes:
    public = load_pem_private_key((folder / "rsa.pem").read_bytes(), None).public_key()
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "nOnE", "NONE", "", "HS", "HS512", "RS256", "ES256", None, ["HS256"], {"HS256": 1}, 1]
)
def test_the_token_has_no_say_in_the_algorithm(verify: Callable[..., Any], algorithm: Any) -> None:
    """It is the key's; a token that names another, or none, is refused, signed or not."""
    header = head(alg=algorithm)
    good = {"iat": NOW, "exp": NOW + 600}
    for given in (signed(header, claims(**good)), encoded(header) + b"." + encoded(claims(**good)) + b"."):
        with pytest.raises(InvalidToken):
            verify(given)


@pytest.mark.parametrize("form", ["pem", "der", "base64"])
def test_a_public_key_is_no_secret_to_sign_with(folder: Path, verify: Callable[..., Any], form: str) -> None:
    """Everybody has it, in every form."""
    forms = {
        "pem": _public_pem(folder),
        "der": _public_der(folder),
        "base64": b"".join(_public_pem(folder).splitlines()[1:-1]),
    }
    for kid in ("rsa", kid_of()):
        given = signed(head(kid=kid), claims(iat=NOW, exp=NOW + 600), forms[form])
        with pytest.raises(InvalidToken):
            verify(given)


HEADERS: dict[str, Any] = {
    "brackets": "[" * 700,
    "braces": '{"a":' * 130,
    "no object": "null",
    "no UTF-8": b"\xff\xfe",
    "NaN": '{"alg": NaN}',
    "a critical demand": head(crit=["exp"]),
    "a critical demand of nothing": head(crit=[]),
    "the address of a key": head(jku="http://127.0.0.1:9/keys"),
    "the address of a certificate": head(x5u="http://127.0.0.1:9/keys"),
    "a key": head(jwk={"kty": "oct", "k": "c2VjcmV0"}),
    "an unknown key": head(kid="unknown"),
    "a path as the key": head(kid="../../etc/passwd"),
    "SQL as the key": head(kid="' OR 1=1 --"),
    "a zero byte in the key": head(kid="rsa\x00"),
    "no key": head(kid=None),
    "a number as the key": head(kid=1),
    "no type": head(typ=None),
    "the general type": head(typ="JWT"),
    "the type of a refresh token": head(typ="rt+jwt"),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_not_ours_is_refused(verify: Callable[..., Any], header: Any) -> None:
    """Whatever it says, with a good signature."""
    with pytest.raises(InvalidToken):
        verify(signed(header, claims(iat=NOW, exp=NOW + 600)))


CLAIMS: dict[str, dict[str, Any]] = {
    "expired": {"exp": NOW - 1},
    "expires now": {"exp": NOW},
    "no expiry": {"exp": None},
    "an expiry in words": {"exp": str(NOW + 600)},
    "an infinite expiry": {"exp": float("inf")},
    "an expiry that is no number": {"exp": float("nan")},
    "a negative expiry": {"exp": -1},
    "an expiry that is a list": {"exp": [NOW + 600]},
    "an expiry that is true": {"exp": True},
    "issued in the future": {"iat": NOW + LEEWAY + 1},
    "issued never": {"iat": None},
    "not valid yet": {"nbf": NOW + LEEWAY + 1},
    "not valid until some word": {"nbf": "now"},
    "no issuer": {"iss": None},
    "another issuer": {"iss": "somebody"},
    "two issuers": {"iss": ["presage"]},
    "no audience": {"aud": None},
    "another audience": {"aud": "somebody"},
    "other audiences": {"aud": ["somebody", "else"]},
    "an audience that is a number": {"aud": 1},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a subject that is a number": {"sub": 1},
    "a subject with a line break": {"sub": "alice\nroot"},
    "no id": {"jti": None},
    "an id that is a number": {"jti": 1},
    "a refresh token": {"typ": "refresh"},
    "an ID token": {"typ": "ID"},
    "scopes that are a list": {"scope": ["predict"]},
}


@pytest.mark.parametrize("changes", CLAIMS.values(), ids=CLAIMS)
def test_claims_are_required_and_typed(verify: Callable[..., Any], changes: dict[str, Any]) -> None:
    """A token that lacks one, or has another kind of value, is refused."""
    with pytest.raises(InvalidToken):
        verify(at_now(**changes))


def test_clocks_may_differ_by_the_leeway_and_no_more(verify: Callable[..., Any]) -> None:
    """At its edge a token is good; what has expired gets none."""
    assert verify(at_now(iat=NOW + LEEWAY, nbf=NOW + LEEWAY)).issued_at == NOW + LEEWAY
    assert verify(at_now(exp=NOW + 1)).expires_at == NOW + 1
    with pytest.raises(InvalidToken):
        verify(at_now(exp=NOW + 1), NOW + 1)


PAYLOADS: dict[str, Any] = {
    "no JSON": "predict",
    "no object": "[]",
    "brackets": "[" * 900,
    "a huge expiry": '{"exp": 1' + "0" * 400 + "}",
    "infinity": '{"exp": Infinity}',
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_a_payload_that_is_no_object_of_claims_is_refused(verify: Callable[..., Any], payload: Any) -> None:
    """Also where a parser would give up in its own way."""
    with pytest.raises(InvalidToken):
        verify(signed(head(), payload))


def _variants(good: bytes) -> dict[str, bytes]:
    start, _, signature = good.rpartition(b".")
    last = signature[-1:]
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = alphabet[alphabet.index(last) ^ 1 : (alphabet.index(last) ^ 1) + 1]
    return {
        "junk behind": good + b"!!!!",
        "padding": good + b"====",
        "one padding": good + b"=",
        "a line break behind": good + b"\n",
        "a line break within": start + b"." + signature[:9] + b"\n" + signature[9:],
        "a blank within": start + b"." + signature[:9] + b" " + signature[9:],
        "the other alphabet": start + b"." + base64url(b"\xfb\xff" * 16).replace(b"-", b"+").replace(b"_", b"/"),
        "bits that mean nothing": start + b"." + signature[:-1] + twin,
        "junk within": start + b"." + signature[:9] + b"!*!*" + signature[9:],
        "no signature": start + b".",
        "two parts": start,
        "four parts": good + b"." + signature,
        "only dots": b"..",
        "nothing": b"",
        "letters that are none": "é.é.é".encode(),
        "a megabyte": b"a" * 500_000 + b"." + b"b" * 500_000 + b"." + signature,
    }


@pytest.mark.parametrize("variant", _variants(b"a.b.c"))
def test_a_signature_has_one_spelling(verify: Callable[..., Any], variant: str) -> None:
    """So what is remembered, or revoked, cannot come again in another dress."""
    with pytest.raises(InvalidToken):
        verify(_variants(at_now())[variant])


def test_hostile_tokens_cost_no_more_than_a_good_one(verify: Callable[..., Any]) -> None:
    """Refusing one takes at most ten times as long as verifying a good one."""

    def seconds(given: bytes) -> float:
        best = float("inf")
        for _ in range(20):
            started = time.perf_counter()
            with contextlib.suppress(InvalidToken):
                verify(given)
            best = min(best, time.perf_counter() - started)
        return best

    usual = seconds(at_now())
    hostile = [*_variants(at_now()).values(), *(signed(header, claims()) for header in HEADERS.values())]
    assert max(map(seconds, hostile)) < 10 * usual
