"""The docs page: Swagger UI, with its files served from here, so that it works without a connection to anywhere."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, JSONResponse

_ASSETS = "/docs/assets"
_DOCUMENT = "/openapi.json"
# Only the files: the package's own helper would bring routes that are not ours.
_FOLDER = Path(fastapi_offline.__file__).parent / "static"
_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")


def add_docs_page(app: FastAPI, access: dict[str, Any]) -> None:
    """Serve `/docs`, which draws the application's OpenAPI document, and the document, to those with that access."""

    @app.get("/docs", include_in_schema=False, openapi_extra=access)
    async def docs(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "").rstrip("/")
        page = get_swagger_ui_html(
            openapi_url=f"{root}{_DOCUMENT}",
            title=app.title,
            swagger_js_url=f"{root}{_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{root}{_ASSETS}/favicon.png",
            swagger_ui_parameters={"defaultModelsExpandDepth": 0, "tryItOutEnabled": True},
        )
        page.headers["Content-Security-Policy"] = _policy(bytes(page.body).decode())
        return page

    @app.get(_ASSETS + "/{name}", include_in_schema=False, openapi_extra=access)
    async def asset(name: str) -> FileResponse:
        if name not in _FILES:
            raise HTTPException(404)
        return FileResponse(_FOLDER / name, headers={"Cache-Control": "public, max-age=86400"})

    @app.get(_DOCUMENT, include_in_schema=False, openapi_extra=access)
    async def document(request: Request) -> JSONResponse:
        root = request.scope.get("root_path", "").rstrip("/")
        return JSONResponse({**app.openapi(), **({"servers": [{"url": root}]} if root else {})})


def _policy(page: str) -> str:
    """What the page may load: our files, and the one script that stands in it."""
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src 'self' {allowed}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
