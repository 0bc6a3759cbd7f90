"""From an artefact's bytes to an estimator: the only place that unpickles.

A pickle is a program. This one may name scikit-learn's world, a few harmless things of the standard library, and the
packages that `MODEL_MODULES` names; so a model with code of its own is refused with advice, and the plainest attacks
(`os.system`, `eval`) do not run. It is a guard-rail, not a sandbox: the digest says that the bytes are those that were
published, and a signature who published them. A skops file is data, which `skops_file.py` builds objects from.
"""

import io
import pickle
import warnings
from typing import Any

from joblib.numpy_pickle import NumpyUnpickler
from joblib.numpy_pickle_utils import _validate_fileobject_and_memmap
from sklearn.exceptions import InconsistentVersionWarning

from app.errors import VersionRefused
from app.manifest import SKOPS_FILE, ArtefactFile
from app.registry.skops_file import load_skops
from app.registry.trust import Trust
from app.runtimes.politeness import breathe

_LIBRARIES = frozenset({"sklearn", "numpy", "scipy", "joblib"})
_HARMLESS = frozenset(
    {
        *(
            f"builtins.{name}"
            for name in ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int")
        ),
        *(f"builtins.{name}" for name in ("list", "object", "range", "set", "slice", "str", "tuple", "type")),
        "_codecs.encode",
        "collections.Counter",
        "collections.OrderedDict",
        "collections.defaultdict",
        "collections.deque",
        "copyreg._reconstructor",
        "datetime.date",
        "datetime.datetime",
        "datetime.timedelta",
        "datetime.timezone",
        "decimal.Decimal",
        "functools.partial",
        "operator.itemgetter",
        "re._compile",
    }
)


class _GuardedUnpickler(NumpyUnpickler):
    """joblib's unpickler, which asks here for every class and function by name; nested object arrays included."""

    modules: tuple[str, ...] = ()
    dispatch = NumpyUnpickler.dispatch.copy()

    def load_memoize(self) -> None:
        """As pickle's, for each object that is made; a vocabulary has tens of thousands."""
        breathe()
        self.memo[len(self.memo)] = self.stack[-1]

    dispatch[pickle.MEMOIZE[0]] = load_memoize

    def find_class(self, module: str, name: str) -> Any:
        self._check(module, name)
        found = super().find_class(module, name)
        # A name may be reached through another module: `numpy` also has an attribute `os` somewhere.
        home = getattr(found, "__module__", None)
        if isinstance(home, str) and home != module:
            self._check(home, getattr(found, "__qualname__", name))
        elif "." in name and not isinstance(found, type):
            raise VersionRefused("unknown_code", f"the artefact names {module}.{name}, which is not a class")
        return found

    def _check(self, module: str, name: str) -> None:
        if module.partition(".")[0] in _LIBRARIES or f"{module}.{name}" in _HARMLESS:
            return
        if any(module == allowed or module.startswith(f"{allowed}.") for allowed in self.modules):
            return
        package = module.partition(".")[0]
        if package == "__main__":
            advice = f"{name} was defined in a script or notebook; move it into an importable package and fit again"
        else:
            advice = f"it contains {module}.{name}; if you trust it, set MODEL_MODULES={package}"
        raise VersionRefused("unknown_code", advice)


def read_estimator(raw: bytes, file: ArtefactFile, trust: Trust) -> Any:
    """The estimator in a joblib file, compressed or not, or in a skops file.

    Raises VersionRefused: `unknown_code` for code that is not allowed, `library_mismatch` when scikit-learn says that
    it was written by another version and that is not to be proven, `skops_missing`, and `artefact_unreadable` for
    anything else that goes wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error" if trust.libraries == "exact" else "ignore", InconsistentVersionWarning)
        try:
            return load_skops(raw, trust.types) if file == SKOPS_FILE else _unpickle(raw, trust.modules)
        except VersionRefused:
            raise
        except InconsistentVersionWarning as warning:
            raise VersionRefused("library_mismatch", str(warning).partition("\n")[0]) from None
        except ModuleNotFoundError as error:
            raise VersionRefused(
                "unknown_code", f"the package {error.name} is allowed, but not installed here"
            ) from None
        except Exception as error:  # a corrupt artefact raises whatever its content runs into
            raise VersionRefused("artefact_unreadable", f"{type(error).__name__}: {error}") from error


def _unpickle(raw: bytes, modules: tuple[str, ...]) -> Any:
    with _validate_fileobject_and_memmap(io.BytesIO(raw), "", None) as (file, _):
        unpickler = _GuardedUnpickler("", file, ensure_native_byte_order=True)
        unpickler.modules = modules
        return unpickler.load()
