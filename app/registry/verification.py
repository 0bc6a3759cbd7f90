"""All that can be said of a version before anything of it is loaded: its signatures, its libraries, its digest.

Each file is read once. The manifest is signed, parsed and followed in the same bytes; so is the artefact hashed and
loaded, whatever becomes of the file meanwhile.
"""

import hashlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version as installed

from app.errors import VersionRefused
from app.manifest import Manifest, Versions
from app.registry.sources import DirectorySource
from app.registry.trust import Trust


@dataclass(frozen=True, slots=True)
class Verified:
    """A version that is what its publisher made: its manifest, its artefact's bytes, and which libraries differ."""

    manifest: Manifest
    artefact: bytes
    differences: tuple[str, ...] = ()


def verified(source: DirectorySource, name: str, version: int, trust: Trust) -> Verified:
    """Read one version, or raise VersionRefused with the first thing that is wrong with it."""
    manifest, differences = verified_manifest(source, name, version, trust)
    return Verified(manifest, whole_artefact(source, manifest), differences)


def verified_manifest(
    source: DirectorySource, name: str, version: int, trust: Trust
) -> tuple[Manifest, tuple[str, ...]]:
    """The manifest, and which libraries differ; all that there is to say before the artefact is read."""
    document = source.document(name, version)
    if trust.looks_at_signatures:
        trust.check_signatures(document, source.signatures(name, version))
    manifest = source.parse(document, name, version)
    differences = tuple(differing_libraries(manifest.versions))
    if differences and trust.libraries == "exact":
        remedy = "train it again, or set MODEL_LIBRARIES=proven"
        raise VersionRefused("library_mismatch", f"{', '.join(differences)}: {remedy}")
    return manifest, differences


def whole_artefact(source: DirectorySource, manifest: Manifest) -> bytes:
    """The artefact's bytes. Raises VersionRefused when they are not those that the manifest describes."""
    raw = source.artefact(manifest)
    if hashlib.sha256(raw).hexdigest() != manifest.artefact.sha256:
        raise VersionRefused("digest_mismatch", "the artefact is not the one that its manifest describes")
    return raw


def differing_libraries(versions: Versions) -> Iterator[str]:
    """Libraries that differ from those here so much that nobody promises that an artefact of theirs means the same.

    scikit-learn must be the very version, numpy the same major one, Python the same minor one.
    """
    compared = (
        ("scikit-learn", versions.scikit_learn, installed("scikit-learn"), None),
        ("numpy", versions.numpy, installed("numpy"), 1),
        ("Python", versions.python, platform.python_version(), 2),
    )
    for library, there, here, parts in compared:
        if there.split(".")[:parts] != here.split(".")[:parts]:
            yield f"fitted with {library} {there}, and this is {here}"
