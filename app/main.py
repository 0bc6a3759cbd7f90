"""What `uvicorn app.main:app` imports; the only module whose import does something."""

from app.factory import create_app

app = create_app()
