"""Signatures on a manifest, and so on all that it says: the artefact's digest above all.

`manifest.sig` holds one signature for each key that signed. Each is Ed25519 over a prefix of our own and the very bytes
of `manifest.json`, so that nothing that was signed for another purpose passes here. A key goes by its fingerprint: the
SHA-256 of the public key in DER.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

_PURPOSE = b"presage model manifest, signature 1\n"
_MOST_SIGNATURES = 16

State = Literal["good", "unsigned", "unknown_key", "signature_invalid"]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Signature(_Document):
    """One key's signature, in base64."""

    key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    signature: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{86}==$")]


class Signatures(_Document):
    """The file `manifest.sig`."""

    format: Literal[1] = 1
    signatures: Annotated[tuple[Signature, ...], Field(min_length=1, max_length=_MOST_SIGNATURES)]


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key whose signatures count, under the name of its file."""

    name: str
    key: Ed25519PublicKey

    @property
    def fingerprint(self) -> str:
        """What a signature of it names."""
        return fingerprint(self.key)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the signatures beside a manifest are worth: the names of the keys that signed it, or what is wrong.

    Unknown keys go by the beginnings of their fingerprints.
    """

    state: State
    signers: tuple[str, ...] = ()
    detail: str = ""


def fingerprint(key: Ed25519PublicKey) -> str:
    """64 hexadecimal digits that stand for a key: the SHA-256 of its DER form."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def judge(manifest: bytes, document: bytes | None, keys: Mapping[str, PublicKey]) -> Judgement:
    """Judge the signatures in a document by the keys that are known, by fingerprint.

    One good signature of a known key is enough, and one bad signature of a known key spoils it.
    """
    if document is None:
        return Judgement("unsigned", detail="it has no signature")
    try:
        found = Signatures.model_validate_json(document).signatures
    except ValidationError:
        return Judgement("signature_invalid", detail="manifest.sig does not fit its format")
    known = [(keys[one.key], one) for one in found if one.key in keys]
    for key, one in known:
        if not _is_good(key.key, manifest, one):
            return Judgement("signature_invalid", detail=f"the signature of the key {key.name} is not of this manifest")
    if not known:
        unknown = tuple(one.key[:16] for one in found)
        return Judgement("unknown_key", unknown, f"it is signed by unknown keys alone: {', '.join(unknown)}")
    return Judgement("good", tuple(key.name for key, _ in known))


def signed(manifest: bytes, document: bytes | None, key: Ed25519PrivateKey) -> bytes:
    """The document with this key's signature in it; those of other keys stay.

    Raises ValueError when the document does not fit its format, or has no room.
    """
    own = fingerprint(key.public_key())
    present = Signatures.model_validate_json(document).signatures if document is not None else ()
    signature = base64.b64encode(key.sign(_PURPOSE + manifest)).decode()
    others = tuple(one for one in present if one.key != own)
    return _to_json(Signatures(signatures=(*others, Signature(key=own, signature=signature))))


def _to_json(signatures: Signatures) -> bytes:
    return signatures.model_dump_json(indent=2).encode() + b"\n"


def _is_good(key: Ed25519PublicKey, manifest: bytes, one: Signature) -> bool:
    raw = base64.b64decode(one.signature)
    if base64.b64encode(raw).decode() != one.signature:  # bits of the last letter that mean nothing
        return False
    try:
        key.verify(raw, _PURPOSE + manifest)
    except InvalidSignature:
        return False
    return True
