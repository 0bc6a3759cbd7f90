"""Trust: what a version must be, and may contain, to be loaded; from the settings, never from the version."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.config import ModelSettings
from app.errors import InvalidSettings, VersionRefused
from app.registry.model_keys import read_public_keys
from app.registry.signatures import Judgement, judge

_ADVICE = {
    "unsigned": "sign it (python -m app models sign), or set MODEL_SIGNATURES=off",
    "unknown_key": "put the public key of who signed it into MODEL_KEYS_DIR, if you trust them",
    "signature_invalid": "it was changed after it was signed",
}


@dataclass(frozen=True, slots=True)
class Trust:
    """`modules` are importable packages that a pickle may name beside scikit-learn's own, `types` those of skops files.

    `signatures` says whether a version must be signed by a key in `keys_dir`; the folder is read anew for each version,
    so that a key comes and goes without a restart. With `libraries` "proven", a version of other libraries passes where
    its golden rows come out equal.
    """

    modules: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    keys_dir: Path | None = None
    signatures: Literal["require", "check", "off"] = "check"
    libraries: Literal["exact", "proven"] = "exact"

    @property
    def looks_at_signatures(self) -> bool:
        """Whether they are asked for, or could at least be found bad."""
        return self.signatures == "require" or (self.signatures == "check" and self.keys_dir is not None)

    def judge(self, manifest: bytes, document: bytes | None) -> Judgement:
        """What the signatures beside a manifest are worth, whether or not they are asked for."""
        return judge(manifest, document, read_public_keys(self.keys_dir).known)

    def check_signatures(self, manifest: bytes, document: bytes | None) -> None:
        """Raises VersionRefused: `unsigned` and `unknown_key` where signatures are required, `signature_invalid`."""
        keys = read_public_keys(self.keys_dir)
        judgement = judge(manifest, document, keys.known)
        if judgement.state == "good" or (self.signatures == "check" and judgement.state != "signature_invalid"):
            return
        raise VersionRefused(judgement.state, "; ".join([judgement.detail, _ADVICE[judgement.state], *keys.problems]))


def trust_of(settings: ModelSettings, *, production: bool) -> Trust:
    """The trust that the settings speak of.

    Raises InvalidSettings when signatures are required by name, and there is no key that could have made them.
    """
    auto: Literal["require", "check"] = "require" if production else "check"
    signatures = auto if settings.model_signatures == "auto" else settings.model_signatures
    if settings.model_signatures == "require" and not (keys := read_public_keys(settings.model_keys_dir)).known:
        needed = "MODEL_SIGNATURES: require needs the public key of a signer (NAME.pub) in MODEL_KEYS_DIR"
        raise InvalidSettings([needed, *keys.problems])
    return Trust(
        settings.model_modules,
        settings.skops_trusted_types,
        settings.model_keys_dir,
        signatures,
        settings.model_libraries,
    )
