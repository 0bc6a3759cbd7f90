"""Who is believed about a version: nothing of one that is not signed, where that is asked for, is ever loaded."""

import base64
import json
import os
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from app.config import ModelSettings
from app.errors import InvalidSettings, SigningRefused, VersionRefused
from app.registry.loader import load_version
from app.registry.model_keys import PassphraseNeeded, make_key_pair, read_private_key, read_public_keys
from app.registry.signing import sign_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust, trust_of
from tests.support.signing import Evil, make_key, sign
from tests.support.versions import write_classifier, write_version

Policy = Literal["require", "check", "off"]
_ALPHABET = string.ascii_letters + string.digits + "+/"


def _load(root: Path, keys: Path | None, signatures: Policy = "require") -> int:
    return load_version(DirectorySource(root), "toy", 1, Trust(keys_dir=keys, signatures=signatures)).version


def _reason(root: Path, keys: Path | None, signatures: Policy = "require") -> str:
    with pytest.raises(VersionRefused) as caught:
        _load(root, keys, signatures)
    return caught.value.refusal.reason


def _signature_file(root: Path) -> Path:
    return root / "toy/1/manifest.sig"


def _rename_keys(document: dict[str, Any], key: str) -> None:
    for one in document["signatures"]:
        one["key"] = key


def _sign_and_change_the_manifest(root: Path, key: Any) -> None:
    sign(root, key)
    manifest = root / "toy/1/manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"A toy.", b"A boy."))


def _borrow_a_signature(root: Path, key: Any) -> None:
    write_classifier(root / "other")
    sign(root / "other", key)
    shutil.copy(_signature_file(root / "other"), _signature_file(root))


def test_a_version_that_a_known_key_signed_is_loaded(tmp_path: Path) -> None:
    """And so is one that somebody unknown has signed as well."""
    write_classifier(tmp_path / "models")
    sign(tmp_path / "models", make_key(tmp_path / "keys"))
    assert _load(tmp_path / "models", tmp_path / "keys") == 1
    sign(tmp_path / "models", make_key(tmp_path / "strangers", "mallory"))
    assert _load(tmp_path / "models", tmp_path / "keys") == 1
    assert len(json.loads(_signature_file(tmp_path / "models").read_bytes())["signatures"]) == 2


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (None, "unsigned"),
        (lambda root, _: sign(root, make_key(root.parent / "strangers", "mallory")), "unknown_key"),
        (_sign_and_change_the_manifest, "signature_invalid"),
        (_borrow_a_signature, "signature_invalid"),
    ],
    ids=["no signature", "a stranger's", "of another manifest", "of another version"],
)
@pytest.mark.parametrize("keys_there", [True, False])
def test_an_evil_artefact_is_never_unpickled_without_a_good_signature(
    tmp_path: Path, spoil: Callable[[Path, Any], None] | None, reason: str, *, keys_there: bool
) -> None:
    """Its digest is right, and what it would do as soon as it is unpickled does not happen."""
    root, keys, canary = tmp_path / "models", tmp_path / "keys", tmp_path / "canary"
    key = make_key(keys)
    write_version(root, Evil(canary))
    if spoil is not None:
        spoil(root, key)
    if not keys_there:  # then nobody is known
        shutil.rmtree(keys)
        reason = "unsigned" if spoil is None else "unknown_key"
    assert _reason(root, keys) == reason
    assert not canary.exists()


def test_the_evil_artefact_would_do_its_work_if_it_were_unpickled(tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    write_version(tmp_path / "models", Evil(tmp_path / "canary"))
    assert _reason(tmp_path / "models", None, "off") == "not_an_estimator"
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("file", ["model.joblib", "manifest.json", "manifest.sig"])
def test_every_flipped_bit_is_refused_before_anything_is_unpickled(tmp_path: Path, file: str) -> None:
    """200 of 200 positions, in each of the files."""
    root, keys, canary = tmp_path / "models", tmp_path / "keys", tmp_path / "canary"
    write_version(root, [Evil(canary), "x" * 300])
    sign(root, make_key(keys))
    path = root / "toy/1" / file
    original = path.read_bytes()
    positions = np.linspace(0, len(original) * 8 - 1, 200).astype(int)
    assert len(set(positions)) == 200
    for position in positions:
        damaged = bytearray(original)
        damaged[position // 8] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        assert _reason(root, keys) in {"digest_mismatch", "signature_invalid", "unknown_key"}
    assert not canary.exists()


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:0], lambda raw: raw[:-1], lambda raw: raw[: len(raw) // 2], lambda raw: os.urandom(len(raw))],
    ids=["empty", "a byte short", "half", "random"],
)
def test_an_artefact_that_is_not_the_one_described_is_never_unpickled(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    """Cut off, or something else of the same size."""
    root = tmp_path / "models"
    write_version(root, Evil(tmp_path / "canary"))
    path = root / "toy/1/model.joblib"
    path.write_bytes(damage(path.read_bytes()))
    assert _reason(root, None, "off") == "digest_mismatch"
    assert not (tmp_path / "canary").exists()


def test_an_artefact_that_is_larger_than_described_is_not_read(tmp_path: Path) -> None:
    """A terabyte of nothing would fill the memory before its digest is known."""
    write_classifier(tmp_path)
    with (tmp_path / "toy/1/model.joblib").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(VersionRefused, match=r"digest_mismatch: .* has 1099511627776 bytes, and may have \d+"):
        _load(tmp_path, None, "off")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(format=2), "signature_invalid"),
        (lambda d: d.update(signatures=[]), "signature_invalid"),
        (lambda d: d.update(more=1), "signature_invalid"),
        (lambda d: d["signatures"].extend(d["signatures"] * 16), "signature_invalid"),
        (lambda d: d["signatures"][0].update(signature=""), "signature_invalid"),
        (lambda d: d["signatures"][0].update(signature=base64.b64encode(bytes(64)).decode()), "signature_invalid"),
        (lambda d: _rename_keys(d, "0" * 64), "unknown_key"),
        (lambda d: _rename_keys(d, "../alice"), "signature_invalid"),
    ],
)
def test_a_file_of_signatures_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    """Another format, nothing or too much in it, or a signature that is none."""
    root, keys = tmp_path / "models", tmp_path / "keys"
    write_classifier(root)
    sign(root, make_key(keys))
    document = json.loads(_signature_file(root).read_bytes())
    change(document)
    _signature_file(root).write_text(json.dumps(document))
    assert _reason(root, keys) == reason


def test_a_signature_has_one_spelling(tmp_path: Path) -> None:
    """The last letter of its base64 has bits that mean nothing; they must be those that the encoding says."""
    root, keys = tmp_path / "models", tmp_path / "keys"
    write_classifier(root)
    sign(root, make_key(keys))
    document = json.loads(_signature_file(root).read_bytes())
    good = document["signatures"][0]["signature"]
    spellings = {c: base64.b64decode(good[:85] + c + "==") for c in _ALPHABET}
    same = [c for c, raw in spellings.items() if raw == base64.b64decode(good) and c != good[85]]
    assert len(same) == 15
    document["signatures"][0]["signature"] = good[:85] + same[0] + "=="
    _signature_file(root).write_text(json.dumps(document))
    assert _reason(root, keys) == "signature_invalid"


def test_a_signature_that_was_made_for_something_else_is_refused(tmp_path: Path) -> None:
    """The manifest's bytes alone, signed by the same key for another purpose, are not enough."""
    root, keys = tmp_path / "models", tmp_path / "keys"
    key = make_key(keys)
    write_classifier(root)
    sign(root, key)
    document = json.loads(_signature_file(root).read_bytes())
    bare = key.sign((root / "toy/1/manifest.json").read_bytes())
    document["signatures"][0]["signature"] = base64.b64encode(bare).decode()
    _signature_file(root).write_text(json.dumps(document))
    assert _reason(root, keys) == "signature_invalid"


def test_a_signed_version_is_not_another_models_version(tmp_path: Path) -> None:
    """Name and number are in what is signed, so a copied folder is refused."""
    root, keys = tmp_path / "models", tmp_path / "keys"
    write_classifier(root)
    sign(root, make_key(keys))
    shutil.copytree(root / "toy/1", root / "other/1")
    with pytest.raises(VersionRefused) as caught:
        load_version(DirectorySource(root), "other", 1, Trust(keys_dir=keys, signatures="require"))
    assert caught.value.refusal.reason == "manifest_invalid"


def test_one_bad_signature_of_a_known_key_spoils_a_good_one(tmp_path: Path) -> None:
    """Somebody has changed something, and which of the two is right would be a guess."""
    root, keys = tmp_path / "models", tmp_path / "keys"
    write_classifier(root)
    sign(root, make_key(keys))
    sign(root, make_key(keys, "bob"))
    assert _load(root, keys) == 1
    document = json.loads(_signature_file(root).read_bytes())
    first, second = document["signatures"]
    second["signature"] = first["signature"]
    _signature_file(root).write_text(json.dumps(document))
    assert _reason(root, keys) == "signature_invalid"


def test_where_signatures_are_not_required_only_a_bad_one_is_refused(tmp_path: Path) -> None:
    """None, or one of an unknown key, will do; without keys nothing can be checked, and with `off` nothing is."""
    root, keys = tmp_path / "models", tmp_path / "keys"
    key = make_key(keys)
    write_classifier(root)
    assert _load(root, keys, "check") == 1
    sign(root, make_key(tmp_path / "strangers", "mallory"))
    assert _load(root, keys, "check") == 1
    sign(root, key)
    document = json.loads(_signature_file(root).read_bytes())
    document["signatures"][1]["signature"] = document["signatures"][0]["signature"]
    _signature_file(root).write_text(json.dumps(document))
    assert _reason(root, keys, "check") == "signature_invalid"
    assert _load(root, None, "check") == 1
    assert _load(root, keys, "off") == 1


def test_a_key_comes_and_goes_without_a_restart(tmp_path: Path) -> None:
    """The folder is read for each version that is loaded."""
    root, keys = tmp_path / "models", tmp_path / "keys"
    write_classifier(root)
    sign(root, make_key(keys))
    trust = Trust(keys_dir=keys, signatures="require")
    assert load_version(DirectorySource(root), "toy", 1, trust).version == 1
    (keys / "alice.pub").rename(tmp_path / "alice.pub")
    with pytest.raises(VersionRefused, match="unknown_key"):
        load_version(DirectorySource(root), "toy", 1, trust)


def test_a_file_that_holds_no_key_believes_nobody_and_spoils_nothing(tmp_path: Path) -> None:
    """Beside a good key: junk, a key of another kind, a folder, and a private key; a refusal names them all."""
    known = make_key_pair("alice", tmp_path)
    (tmp_path / "junk.pub").write_bytes(b"junk")
    (tmp_path / "folder.pub").mkdir()
    other = generate_private_key(SECP256R1()).public_key()
    (tmp_path / "curve.pub").write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "secret.pub").write_bytes((tmp_path / "alice.key").read_bytes())
    keys = read_public_keys(tmp_path)
    assert list(keys.known) == [known.fingerprint]
    assert keys.problems == (
        "MODEL_KEYS_DIR: curve.pub: is no Ed25519 key",
        "MODEL_KEYS_DIR: folder.pub: Is a directory",
        "MODEL_KEYS_DIR: junk.pub: is no public key in PEM",
        "MODEL_KEYS_DIR: secret.pub: is no public key in PEM",
    )
    write_classifier(tmp_path / "models")
    with pytest.raises(VersionRefused, match=r"unsigned: .*; MODEL_KEYS_DIR: curve\.pub: is no Ed25519 key"):
        _load(tmp_path / "models", tmp_path)


def test_a_pair_of_keys_is_never_overwritten_and_the_private_half_is_the_owners(tmp_path: Path) -> None:
    """Mode 0600; a half that is there, whichever, stays as it is."""
    make_key_pair("alice", tmp_path)
    before = (tmp_path / "alice.key").read_bytes()
    assert (tmp_path / "alice.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(SigningRefused, match="never overwritten"):
        make_key_pair("alice", tmp_path)
    (tmp_path / "alice.pub").unlink()
    with pytest.raises(SigningRefused, match="never overwritten"):
        make_key_pair("alice", tmp_path)
    assert (tmp_path / "alice.key").read_bytes() == before
    assert not (tmp_path / "alice.pub").exists()
    with pytest.raises(SigningRefused, match="a key's name"):
        make_key_pair("../alice", tmp_path)


def test_an_encrypted_key_needs_its_passphrase(tmp_path: Path) -> None:
    """Without one that is said; a wrong one opens nothing."""
    public = make_key_pair("alice", tmp_path, "correct horse")
    path = tmp_path / "alice.key"
    assert b"ENCRYPTED" in path.read_bytes()
    with pytest.raises(PassphraseNeeded, match="MODEL_KEY_PASSPHRASE"):
        read_private_key(path)
    with pytest.raises(SigningRefused, match="cannot be decrypted"):
        read_private_key(path, "battery staple")
    private = read_private_key(path, "correct horse").public_key()
    assert private == public.key == load_pem_public_key((tmp_path / "alice.pub").read_bytes())


def test_what_is_no_private_key_signs_nothing(tmp_path: Path) -> None:
    """A public key, or no file at all, is refused with its path."""
    make_key_pair("alice", tmp_path)
    with pytest.raises(SigningRefused, match=r"alice\.pub is no private key"):
        read_private_key(tmp_path / "alice.pub")
    with pytest.raises(SigningRefused, match="No such file"):
        read_private_key(tmp_path / "bob.key")


def test_what_is_broken_is_not_signed(tmp_path: Path) -> None:
    """A signature says that the artefact is whole, so it is looked at first."""
    key = make_key(tmp_path / "keys")
    write_classifier(tmp_path / "models")
    path = tmp_path / "models/toy/1/model.joblib"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(SigningRefused, match="digest_mismatch"):
        sign_version(DirectorySource(tmp_path / "models"), "toy", 1, key)
    assert not _signature_file(tmp_path / "models").exists()


def test_to_sign_again_changes_nothing_and_mends_what_was_bad(tmp_path: Path) -> None:
    """A good signature stays as it is; one of an earlier manifest is replaced; a damaged file is not written over."""
    root, key = tmp_path / "models", make_key(tmp_path / "keys")
    source = DirectorySource(root)
    write_classifier(root)
    sign(root, key)
    before = _signature_file(root).read_bytes()
    assert not sign_version(source, "toy", 1, key)
    assert _signature_file(root).read_bytes() == before
    manifest = root / "toy/1/manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"A toy.", b"A boy."))
    assert sign_version(source, "toy", 1, key)
    assert _load(root, tmp_path / "keys") == 1
    _signature_file(root).write_text("{")
    with pytest.raises(SigningRefused, match="remove it and sign anew"):
        sign_version(source, "toy", 1, key)


@pytest.mark.parametrize(
    ("setting", "production", "policy"),
    [
        ("auto", False, "check"),
        ("auto", True, "require"),
        ("off", True, "off"),
        ("require", False, "require"),
    ],
)
def test_what_is_asked_for_by_the_settings(tmp_path: Path, setting: Any, policy: str, *, production: bool) -> None:
    """`auto` requires in production, and checks elsewhere."""
    make_key_pair("alice", tmp_path)
    settings = ModelSettings(model_signatures=setting, model_keys_dir=tmp_path)
    assert trust_of(settings, production=production).signatures == policy


@pytest.mark.parametrize("keys", [None, Path("/nonexistent"), Path("/proc/self/fdinfo")])
def test_signatures_that_are_required_need_a_key(keys: Path | None) -> None:
    """One line says so before the start; in production alone every version is refused instead."""
    with pytest.raises(InvalidSettings, match="MODEL_SIGNATURES: require needs the public key"):
        trust_of(ModelSettings(model_signatures="require", model_keys_dir=keys), production=False)
    assert trust_of(ModelSettings(model_keys_dir=keys), production=True).signatures == "require"
