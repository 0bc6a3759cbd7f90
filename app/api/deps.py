"""The aliases that signatures of cold routes are made of."""

from typing import Annotated

from fastapi import Depends, Request

from app.api.hot_route import ANONYMOUS
from app.wiring import Services


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _principal(request: Request) -> str:  # noqa: ARG001 -- what will say who asks
    """Who asks. Nobody has to say who they are yet."""
    return ANONYMOUS


ServicesDep = Annotated[Services, Depends(_services)]
PrincipalDep = Annotated[str, Depends(_principal)]
