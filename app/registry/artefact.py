"""Unpickle an artefact: the only place that does.

A pickle is a program. This one may name scikit-learn's world, a few harmless things of the standard library, and the
packages that `MODEL_MODULES` names; so a model with code of its own is refused with advice, and the plainest attacks
(`os.system`, `eval`) do not run. It is a guard-rail, not a sandbox: the digest says that the bytes are those that were
published, and trust in who published them must come from elsewhere.
"""

import io
import warnings
from typing import Any

from joblib.numpy_pickle import NumpyUnpickler
from joblib.numpy_pickle_utils import _validate_fileobject_and_memmap
from sklearn.exceptions import InconsistentVersionWarning

from app.errors import VersionRefused

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


def unpickle(raw: bytes, modules: tuple[str, ...]) -> Any:
    """The estimator in a joblib file, compressed or not.

    Raises VersionRefused: `unknown_code` for code that is not allowed, `library_mismatch` when scikit-learn says that
    the pickle is of another version, `artefact_unreadable` for anything else that goes wrong in it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", InconsistentVersionWarning)
        try:
            with _validate_fileobject_and_memmap(io.BytesIO(raw), "", None) as (file, _):
                unpickler = _GuardedUnpickler("", file, ensure_native_byte_order=True)
                unpickler.modules = modules
                return unpickler.load()
        except VersionRefused:
            raise
        except InconsistentVersionWarning as warning:
            raise VersionRefused("library_mismatch", str(warning).partition("\n")[0]) from None
        except ModuleNotFoundError as error:
            raise VersionRefused(
                "unknown_code", f"the package {error.name} is allowed, but not installed here"
            ) from None
        except Exception as error:  # a corrupt pickle raises whatever its opcodes run into
            raise VersionRefused("artefact_unreadable", f"{type(error).__name__}: {error}") from error
