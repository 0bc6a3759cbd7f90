"""Guard: who asks, whether they may, and how much they have left; asked before a byte of a body is read.

Hot routes ask it themselves, for every other route the gate does. What has no principal draws on the budget of its
address, so that guessing credentials, or paths, is not free.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import Scope

from app.api.edge import TRUSTED_PEER, budget_address
from app.api.exchange import head, header
from app.auth.authenticator import ANONYMOUS
from app.auth.principal import Principal
from app.errors import AmbiguousCredentials, Forbidden, InvalidCredential, Unauthenticated
from app.limits.limiter import Grant
from app.wiring import Services

# What cold routes draw on, beside the models' names.
REQUESTS = "requests"
ADMISSION = "presage.admission"
_FREE = "/health/"
_BEARER = b"bearer "
_CHALLENGE = (b"www-authenticate", b'Bearer realm="presage"')
_INVALID = (b"www-authenticate", b'Bearer realm="presage", error="invalid_token"')
_MOST_IDENTITY = 255


@dataclass(slots=True)
class Admission:
    """Who was let in, and what was taken from their plan; `who` is the name of the plan's owner."""

    principal: Principal
    who: str
    grant: Grant


class Guard:
    """Made once the services are open."""

    def __init__(self, services: Services) -> None:
        settings = services.settings.auth
        self._authenticator = services.authenticator
        self._limits = services.limits
        self._registry = services.registry
        self._default_model = services.settings.models.default_model
        self._platform_header = settings.platform_header.lower().encode()
        identify: dict[str, Callable[[Scope], Principal]] = {
            "jwt": self._by_credential,
            "platform": self._by_platform,
            "none": lambda _: ANONYMOUS,
        }
        self._identify = identify[settings.auth_mode]
        self._anonymous = settings.auth_mode == "none"

    def admit_to_model(self, scope: Scope, needed: Sequence[str]) -> Admission:
        """To a route that predicts; `needed` is its declaration, with the model still to be filled in."""
        model = needed[0].partition(":")[2]
        if model == "{model}":
            model = scope["path_params"]["model"]
        elif model == "{default}":
            model = self._default_model
        # A name that no model has would be a window of the caller's own making.
        window = model if model in self._registry.models else REQUESTS
        admission = self._admit(scope, window)
        if not admission.principal.may_predict(model):
            raise _forbidden(["predict"])
        return admission

    def admit(self, scope: Scope, needed: Sequence[str]) -> None:
        """To a cold route, on which `admission` then finds it. Raises what refuses, also for one that is open."""
        if needed:
            admission = scope[ADMISSION] = self._admit(scope, REQUESTS)
            if not any(admission.principal.may_any(verb) for verb in needed):
                raise _forbidden(needed)
        elif not scope["path"].startswith(scope.get("root_path", "") + _FREE):
            self._limits.admit_address(budget_address(scope))

    def _admit(self, scope: Scope, window: str) -> Admission:
        try:
            principal = self._identify(scope)
        except (Unauthenticated, AmbiguousCredentials) as error:
            self._limits.admit_address(budget_address(scope))
            if isinstance(error, Unauthenticated):
                error.headers = [_INVALID if isinstance(error, InvalidCredential) else _CHALLENGE]
            raise
        who = principal.subject if not self._anonymous else f"{principal.subject} {budget_address(scope)}"
        return Admission(principal, who, self._limits.admit(who, window, principal.plan))

    def _by_credential(self, scope: Scope) -> Principal:
        found = head(scope)
        authorization, key = found.get(b"authorization"), found.get(b"x-api-key")
        if len(found) != len(scope["headers"]) or (authorization is not None and key is not None):
            _only_one(scope, b"authorization", b"x-api-key")
        if authorization is not None and authorization[:7].lower() == _BEARER:
            return self._authenticator.bearer(authorization[7:])
        if key is not None:
            return self._authenticator.api_key(key)
        raise Unauthenticated("send Authorization: Bearer TOKEN, or X-API-Key; POST /auth/token has tokens for clients")

    def _by_platform(self, scope: Scope) -> Principal:
        _only_one(scope, self._platform_header)
        given = header(scope, self._platform_header) if scope.get(TRUSTED_PEER) else None
        identity = given.decode("latin-1").strip() if given else ""
        if not identity or len(identity) > _MOST_IDENTITY or not identity.isascii() or not identity.isprintable():
            raise Unauthenticated("the proxy in front has not said who asks")
        return self._authenticator.platform(identity)


def admission_of(scope: Scope) -> Admission:
    """Whom the gate let in to a cold route. Raises Unauthenticated where it has not been asked."""
    found: Admission | None = scope.get(ADMISSION)
    if found is None:
        raise Unauthenticated("this route is reached through the gate only", headers=[_CHALLENGE])
    return found


def _only_one(scope: Scope, *names: bytes) -> None:
    """Of all these headers together, at most one may have come; else which one counts would be a guess."""
    if sum(name in names for name, _ in scope["headers"]) > 1:
        raise AmbiguousCredentials("send one credential: one Authorization header, or one X-API-Key")


def _forbidden(needed: Sequence[str]) -> Forbidden:
    """RFC 6750 has the challenge name what would do."""
    wanted = " ".join(needed)
    challenge = (b"www-authenticate", f'Bearer realm="presage", error="insufficient_scope", scope="{wanted}"'.encode())
    return Forbidden(f"this needs the scope {' or '.join(needed)}", headers=[challenge])
