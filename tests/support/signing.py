"""Keys, and versions that are signed or evil, for tests of who is believed."""

from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.registry.model_keys import make_key_pair, read_private_key
from app.registry.signing import sign_version
from app.registry.sources import DirectorySource


class Evil:
    """Pickled, it is a program that writes a file: with nothing but what an artefact may name."""

    def __init__(self, canary: Path) -> None:
        self._canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return np.savetxt, (self._canary, [1.0])


def make_key(folder: Path, name: str = "alice") -> Ed25519PrivateKey:
    """A pair of keys in a folder, as `models keygen` makes it; the private one."""
    make_key_pair(name, folder)
    return read_private_key(folder / f"{name}.key")


def sign(root: Path, key: Ed25519PrivateKey, name: str = "toy", version: int = 1) -> None:
    """Sign a version, as `models sign` does."""
    assert sign_version(DirectorySource(root), name, version, key)
