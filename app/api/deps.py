"""The aliases that signatures of cold routes are made of."""

from typing import Annotated

from fastapi import Depends, Request

from app.api.guard import Admission, admission_of
from app.auth.principal import Principal
from app.wiring import Services


def _services(request: Request) -> Services:
    services: Services = request.app.services
    return services


def _admission(request: Request) -> Admission:
    """Whom the gate let in."""
    return admission_of(request.scope)


def _principal(request: Request) -> Principal:
    return admission_of(request.scope).principal


ServicesDep = Annotated[Services, Depends(_services)]
AdmissionDep = Annotated[Admission, Depends(_admission)]
PrincipalDep = Annotated[Principal, Depends(_principal)]
