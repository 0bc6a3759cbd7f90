"""What `uvicorn app.main:app` imports; the only module whose import does something."""

from app.config import read_settings
from app.factory import create_app
from app.telemetry.logs import configure_logs

_settings = read_settings()
configure_logs(level=_settings.server.log_level, json=_settings.json_logs)
app = create_app(_settings)
