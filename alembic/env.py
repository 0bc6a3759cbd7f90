"""What alembic runs for each of its commands. The work, and the lock around it, is in `app/storage/migrations.py`."""

from alembic import context

from app.config import read_settings
from app.storage.migrations import run_offline, run_online

storage = context.config.attributes.get("storage") or read_settings().storage
if context.is_offline_mode():
    run_offline(storage)
else:
    run_online(storage)
