"""Tokens that must not pass: good ones with one thing wrong, and attempts to have a say in the keys."""

import time
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from tests.support.tokens import base64url, claims, encoded, head, signed, token

Tokens = dict[str, bytes]

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def with_an_algorithm_of_their_own(public_key: bytes, kid: str) -> Tokens:
    """No signature at all, or one by HMAC with what everybody has: the public key in PEM, with the id `kid`."""
    found = {}
    for algorithm in ("none", "None", "nOnE", "NONE", "", None, ["HS256"], {"HS256": 1}, "HS512"):
        header = head(alg=algorithm)
        found[f"unsigned as {algorithm!r}"] = encoded(header) + b"." + encoded(claims()) + b"."
        found[f"signed as {algorithm!r}"] = signed(header, claims())
    body = b"".join(public_key.split(b"\n")[1:-2])
    der = load_pem_public_key(public_key).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for form, key in {"PEM": public_key, "stripped PEM": public_key.strip(), "DER": der, "base64": body}.items():
        for header in (head(kid=kid), head()):
            found[f"signed with the public key in {form} as {header['kid']}"] = signed(header, claims(), key)
    return found


def with_headers_of_their_own(address: str) -> Tokens:
    """Well signed, with a header that asks for something; keys would be found at the address."""
    headers: dict[str, Any] = {
        "3 KB of brackets": "[" * 3_000,
        "no object": "null",
        "no UTF-8": b"\xff\xfe",
        "a critical demand": head(crit=["exp"]),
        "the address of keys": head(jku=f"{address}/keys"),
        "the address of a certificate": head(x5u=f"{address}/certificate"),
        "a key": head(jwk={"kty": "oct", "k": "c2VjcmV0"}),
        "an unknown key": head(kid="unknown"),
        "a path as the key": head(kid="../../../../etc/passwd"),
        "SQL as the key": head(kid="' OR 1=1 --"),
        "an address as the key": head(kid=f"{address}/key"),
        "no key": head(kid=None),
        "the type of a refresh token": head(typ="rt+jwt"),
    }
    return {name: signed(header, claims()) for name, header in headers.items()}


def with_claims_that_do_not_do() -> Tokens:
    """Well signed, and expired, incomplete, or meant for something else."""
    now = int(time.time())
    changes: dict[str, dict[str, Any]] = {
        "no expiry": {"exp": None},
        "expired": {"exp": now - 1},
        "expires now": {"exp": now},
        "an expiry in words": {"exp": "tomorrow"},
        "an infinite expiry": {"exp": float("inf")},
        "no audience": {"aud": None},
        "another audience": {"aud": "somebody"},
        "no issuer": {"iss": None},
        "another issuer": {"iss": "somebody"},
        "no subject": {"sub": None},
        "no id": {"jti": None},
        "no time of issue": {"iat": None},
        "issued tomorrow": {"iat": now + 86_400},
        "not valid before tomorrow": {"nbf": now + 86_400},
        "a refresh token": {"typ": "refresh"},
    }
    return {name: token(**change) for name, change in changes.items()}


def spelt_in_another_way(good: bytes) -> Tokens:
    """The same signature to a lenient reader, so that whatever remembers or revokes a token would miss it."""
    start, _, signature = good.rpartition(b".")
    place = _ALPHABET.index(signature[-1:])
    twin = _ALPHABET[place ^ 1 : (place ^ 1) + 1]
    return {
        "junk behind": good + b"!!!!",
        "padding": good + b"====",
        "one padding": good + b"=",
        "a blank within": start + b"." + signature[:9] + b" " + signature[9:],
        "junk within": start + b"." + signature[:8] + b"!*!*" + signature[8:],
        "bits that mean nothing": start + b"." + signature[:-1] + twin,
        "four parts": good + b"." + signature,
        "no signature": start + b".",
        "two parts": start,
        "only dots": b"..",
        "another signature": start + b"." + base64url(b"\x00" * 32),
    }
