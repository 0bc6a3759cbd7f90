"""A secret in a file of one's own, for whoever starts without one."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path


def make_secret(path: Path) -> None:
    """Put 256 random bits, as hexadecimal digits, where only the owner reads them, unless the file is there already.

    It gets its name once it is whole: another process that comes at the same moment must not read half of it. Raises
    OSError.
    """
    descriptor, made = tempfile.mkstemp(dir=path.parent)  # 0600
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    try:
        with contextlib.suppress(FileExistsError):
            os.link(made, path)
    finally:
        Path(made).unlink()
