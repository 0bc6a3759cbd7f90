"""Access: what a route asks of its callers, declared once, on the route.

The declaration is the route's own `security` in the OpenAPI document, so what is shown is what is asked; the guard
reads it from there. An application with a route that declares nothing does not start.
"""

from collections.abc import Iterable
from typing import Any

from fastapi.routing import APIRoute

# The names of the two ways to show a credential, in the OpenAPI document.
SCHEMES = ("OAuth2", "ApiKey")


SCOPES = {
    "predict": "Predict with every model, and read of one's own predictions and of the models.",
    "feedback": "Say what turned out to be true.",
    "read": "Read everybody's predictions, the whole catalog, and the metrics where they are guarded.",
    "admin": "Register and change clients, keys and tokens, and decide which versions of models answer.",
}


def needs(*scopes: str, **extra: Any) -> dict[str, Any]:
    """`openapi_extra` of a route: any one of the scopes will do, by either way; none: it is open to everybody.

    `predict:{model}` stands for the model that the path names, `predict:{default}` for the default model. `extra` is
    what else the route adds to its part of the document.
    """
    return {"security": [{scheme: [scope]} for scope in scopes for scheme in SCHEMES], **extra}


PUBLIC = needs()


def declared(route: APIRoute) -> tuple[str, ...]:
    """The scopes of which a caller needs one; empty for an open route. Raises TypeError where nothing is declared."""
    security: Iterable[dict[str, list[str]]] | None = (route.openapi_extra or {}).get("security")
    if security is None:
        raise TypeError(f"{route.path} does not declare who may call it")
    return tuple(dict.fromkeys(scope for way in security for scopes in way.values() for scope in scopes))


def security_schemes(token_url: str, models: Iterable[str]) -> dict[str, Any]:
    """The components of the document that the declarations refer to."""
    by_model = {f"predict:{model}": f"Predict with {model}." for model in models}
    flow = {"tokenUrl": token_url, "scopes": {**SCOPES, **by_model}}
    return {
        "OAuth2": {
            "type": "oauth2",
            "description": "A bearer token, from `POST /auth/token` or `python -m app token`.",
            "flows": {"clientCredentials": flow, "password": flow},
        },
        "ApiKey": {
            "type": "apiKey",
            "in": "header",
            "name": "X-API-Key",
            "description": "An API key, from `python -m app clients key`.",
        },
    }
