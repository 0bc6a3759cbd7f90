"""Sign versions on disk: the manifest as it stands, once its artefact proved to be the one that it describes."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.errors import SigningRefused, VersionRefused
from app.manifest import SIGNATURES_FILE
from app.registry.aliases import changing_model
from app.registry.files import replace_file
from app.registry.signatures import PublicKey, judge, signed
from app.registry.sources import DirectorySource
from app.registry.verification import whole_artefact


def sign_version(source: DirectorySource, name: str, version: int, key: Ed25519PrivateKey) -> bool:
    """Put a signature of this key beside the manifest; False when a good one is there already.

    Raises SigningRefused for a version that is broken, since a signature says that it is not.
    """
    try:
        document = source.document(name, version)
        whole_artefact(source, source.parse(document, name, version))
        with changing_model(source.root / name):
            present = source.signatures(name, version)
            if _has_signed(document, present, key):
                return False
            replace_file(source.folder(name, version) / SIGNATURES_FILE, signed(document, present, key))
    except VersionRefused as error:
        raise SigningRefused(f"{name} {version} is not signed: {error}") from None
    except ValueError:
        place = source.folder(name, version) / SIGNATURES_FILE
        raise SigningRefused(f"{place} does not fit its format, or is full: remove it and sign anew") from None
    except OSError as error:
        raise SigningRefused(f"{source.folder(name, version)} cannot be written: {error.strerror}") from None
    return True


def _has_signed(document: bytes, present: bytes | None, key: Ed25519PrivateKey) -> bool:
    own = PublicKey("own", key.public_key())
    return judge(document, present, {own.fingerprint: own}).state == "good"
