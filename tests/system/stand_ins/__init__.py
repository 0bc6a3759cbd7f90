"""Images under the names that the Dockerfile and the compose file use, for machines that reach no registry.

Each is made from Debian packages: the base image has the same release and Python, PostgreSQL and Redis behave as far as
the compose file relies on them. Where the registry answers, the real images are pulled instead.
"""

import hashlib
import os
import re
import socket
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.support.server import ROOT
from tests.system.engine import Engine

_LABEL = "presage.stand-in"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_ENTRYPOINT = Path(__file__).parent / "entrypoint.sh"
_SMALL = [
    '--aptopt=Acquire::Languages "none"',
    *(f"--dpkgopt=path-exclude={path}/*" for path in ("/usr/share/doc", "/usr/share/man", "/usr/share/locale")),
    # PostgreSQL's just-in-time compiler is a third of its size, and is loaded only where it is there.
    "--dpkgopt=path-exclude=*/libLLVM*",
]


@dataclass(frozen=True)
class Recipe:
    """How to make one root file system, and the image out of it."""

    names: tuple[str, ...]
    suite: str
    packages: tuple[str, ...]
    hooks: tuple[str, ...]
    changes: tuple[str, ...]
    copied: Path

    @property
    def digest(self) -> str:
        """Changes with whatever goes into the image."""
        return hashlib.sha256(repr(self).encode() + self.copied.read_bytes()).hexdigest()[:16]


def base_image() -> str:
    """The name of the base image in the Dockerfile."""
    found = re.search(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found, "the Dockerfile names no base image"
    return found[1]


def compose_image(service: str) -> str:
    """The image of a service in the compose file."""
    return str(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][service]["image"])


def provide_images(engine: Engine) -> None:
    """See to it that the engine has the base image, PostgreSQL and Redis: real ones, or else stand-ins."""
    recipes = (_base(), _services())
    names = [name for recipe in recipes for name in recipe.names]
    if _registry_answers() and all(engine.run("pull", name, check=False).returncode == 0 for name in names):
        return
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda recipe: _provide(engine, recipe), recipes))


def _registry_answers() -> bool:
    try:
        socket.create_connection(("registry-1.docker.io", 443), timeout=3).close()
    except OSError:
        return False
    return True


def _base() -> Recipe:
    name = base_image()
    found = re.fullmatch(r"python:(\d+\.\d+)-slim-(\w+)", name)
    assert found, f"no recipe for a stand-in of {name}"
    python, suite = found.groups()
    # pip finds and trusts the package index as it does on this machine, which may have an authority of its own.
    settings = ["[global]", f"cert = {_CERTIFICATES}"]
    if index := os.environ.get("PIP_INDEX_URL"):
        settings.append(f"index-url = {index}")
    lines = " ".join(f"'{line}'" for line in settings)
    return Recipe(
        names=(name,),
        suite=suite,
        packages=(f"python{python}", f"python{python}-venv", "python3-pip", "ca-certificates"),
        hooks=(
            f'cp {_CERTIFICATES} "$1{_CERTIFICATES}"',
            f'printf "%s\\n" {lines} >"$1/etc/pip.conf"',
            f'ln -s /usr/bin/python{python} "$1/usr/local/bin/python"',
            f'rm -f "$1/usr/lib/python{python}/EXTERNALLY-MANAGED"',
        ),
        changes=("ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", 'CMD ["python"]'),
        copied=_CERTIFICATES,
    )


def _services() -> Recipe:
    return Recipe(
        names=(compose_image("postgres"), compose_image("redis")),
        suite="trixie",
        packages=("postgresql", "redis-server"),
        hooks=(f'install -m 755 {_ENTRYPOINT} "$1/entrypoint.sh"',),
        changes=(
            'ENTRYPOINT ["/entrypoint.sh"]',
            "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
        copied=_ENTRYPOINT,
    )


def _provide(engine: Engine, recipe: Recipe) -> None:
    wanted = f'{{{{index .Config.Labels "{_LABEL}"}}}}'
    have = [
        engine.run("image", "inspect", "--format", wanted, name, check=False).stdout.strip() for name in recipe.names
    ]
    if all(label == recipe.digest for label in have):
        return
    with tempfile.TemporaryDirectory(dir=engine.folder) as folder:
        tar = Path(folder) / "root.tar"
        done = subprocess.run(
            ["mmdebstrap", "--variant=minbase", f"--include={','.join(recipe.packages)}", *_SMALL]
            + [f"--customize-hook={hook}" for hook in recipe.hooks]
            + [recipe.suite, tar],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        changes = [f"--change={change}" for change in (*recipe.changes, f"LABEL {_LABEL}={recipe.digest}")]
        engine.run("import", *changes, tar, recipe.names[0])
    for name in recipe.names[1:]:
        engine.run("tag", recipe.names[0], name)
