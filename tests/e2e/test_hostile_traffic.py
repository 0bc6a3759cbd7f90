"""The real service under attack: it keeps every promise that can be checked from outside."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr

from app.config import StorageSettings
from app.storage.migrations import upgrade
from tests.support import checks
from tests.support.demo import MODULES
from tests.support.outside import Target
from tests.support.server import running_server
from tests.support.tokens import SECRET


@pytest.fixture(scope="module")
def target(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server that wants tokens, with a migrated database and a secret and an RSA key to verify them with."""
    folder = tmp_path_factory.mktemp("attacked")
    upgrade(StorageSettings(database_url=SecretStr(f"sqlite:///{folder}/presage.db")))
    (folder / "keys").mkdir()
    public = rsa.generate_private_key(65537, 2048).public_key()
    public_key = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "keys/rsa.pem").write_bytes(public_key)
    environment = {
        "AUTH_MODE": "jwt",
        "JWT_SECRET": SECRET,
        "JWT_KEYS_DIR": f"{folder}/keys",
        "MODEL_MODULES": MODULES,
        "LOG_FORMAT": "json",
    }
    with running_server(models_dir, folder / "log", environment) as server:
        yield Target(server.port, server.process.pid, public_key)


@pytest.mark.parametrize("check", checks.ALL, ids=lambda check: check.__name__)
def test_the_service_keeps_its_promise(target: Target, check: Callable[[Target], None]) -> None:
    """Each check is one; that it can fail is shown elsewhere."""
    check(target)
