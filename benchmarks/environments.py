"""A virtual environment for each peer, made from pinned versions and kept: peers do not agree on libraries.

What cannot be installed here is a line in the results, not the end of the run.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.server import ROOT

PLACE = ROOT / "var/bench"
_REQUIREMENTS = ROOT / "benchmarks/peers"
_INSTALL_SECONDS = 900
_STAMP = "installed"


class NotInstalled(Exception):
    """A peer's environment does not exist, with the reason."""


def python_of(name: str, *, install: bool, say: Callable[[str], None]) -> Path:
    """The interpreter of a peer's environment; made first when it is missing or older than its list of versions.

    Raises NotInstalled, with the installer's own reason, or when it is missing and may not be installed.
    """
    requirements = _REQUIREMENTS / f"{name}.txt"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    place = PLACE / name
    python, stamp = place / "bin/python", place / _STAMP
    if python.exists() and stamp.exists() and stamp.read_text() == digest:
        return python
    if not install:
        raise NotInstalled("it is not installed; `make bench` installs it")
    say(f"installing {name} (once)")
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    _run([ROOT / ".venv/bin/uv", "venv", "--quiet", "--python", sys.executable, place])
    # pip, as everywhere else: wherever that finds its packages, there are these, too.
    pip = [str(ROOT / ".venv/bin/python"), "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    _run([*pip, "--disable-pip-version-check", "-r", str(requirements)])
    stamp.write_text(digest)
    return python


def version_of(name: str, package: str) -> str:
    """The version of a package in a peer's list."""
    for line in (_REQUIREMENTS / f"{name}.txt").read_text().splitlines():
        pinned, _, version = line.partition("==")
        if pinned == package:
            return version.split(";")[0].strip()
    raise KeyError(f"{name}.txt does not pin {package}")


def _run(command: Sequence[str | Path]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except FileNotFoundError:
        raise NotInstalled("there is no virtual environment: make .venv/dev") from None
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split())[:300]
        raise NotInstalled(f"it cannot be installed: {reason}") from None
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"it cannot be installed in {_INSTALL_SECONDS} s") from None
