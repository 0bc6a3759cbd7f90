"""The aliases that signatures of cold routes are made of."""

from typing import Annotated

from fastapi import Depends, Request

from app.wiring import Services


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
