"""Every error that the service raises on purpose, and what each means to a caller.

This module knows no HTTP library: `status` is a number that the edge may use, and `api/problems.py` is the one place
that turns an error into an answer. A `detail` reaches the caller, so it never holds input, paths or exception texts.

    PresageError                       status  code
    ├── RequestRefused
    │   ├── UnknownHost                400     unknown_host
    │   ├── AmbiguousCredentials       400     ambiguous_credentials
    │   ├── MalformedRequest           400     malformed_request
    │   ├── MalformedJson              400     malformed_json
    │   ├── InvalidTokenRequest        400     invalid_request; this and those below are RFC 6749's
    │   │   ├── InvalidClient          401     invalid_client
    │   │   ├── InvalidGrant           400     invalid_grant
    │   │   ├── InvalidScope           400     invalid_scope
    │   │   ├── UnauthorizedClient     400     unauthorized_client
    │   │   └── UnsupportedGrantType   400     unsupported_grant_type
    │   ├── Unauthenticated            401     unauthenticated
    │   │   └── InvalidCredential      401     invalid_credential
    │   ├── Forbidden                  403     forbidden
    │   ├── NotFound                   404     not_found
    │   │   ├── ModelNotFound          404     model_not_found
    │   │   ├── VersionNotFound        404     version_not_found
    │   │   ├── PredictionNotFound     404     prediction_not_found
    │   │   └── ClientNotFound         404     client_not_found
    │   ├── MethodNotAllowed           405     method_not_allowed
    │   ├── RequestTimeout             408     request_timeout
    │   ├── ClientExists               409     client_exists
    │   ├── ReleaseRefused             409     release_refused
    │   │   ├── AliasProtected         409     alias_protected
    │   │   ├── ChampionChanged        409     champion_changed
    │   │   ├── NothingToRollBack      409     nothing_to_roll_back
    │   │   ├── PromotionRefused       409     promotion_refused
    │   │   └── VersionUnusable        409     version_unusable
    │   ├── BodyTooLarge               413     body_too_large
    │   ├── TooManyRows                413     too_many_rows
    │   ├── BatchExceedsPlan           413     batch_exceeds_plan
    │   ├── UrlTooLong                 414     url_too_long
    │   ├── UnsupportedMediaType       415     unsupported_media_type
    │   ├── InvalidInput               422     invalid_input
    │   ├── RateLimited                429     rate_limited
    │   │   └── TooManyConnections     429     too_many_connections
    │   └── HeadersTooLarge            431     headers_too_large
    ├── InternalError                  500     internal_error
    │   └── ModelFailed                500     model_failed
    └── Unavailable
        ├── NotReady                   503     not_ready
        │   └── VersionBeingLoaded     503     not_ready; whoever waits until it is loaded may ask again
        ├── ModelNotServing            503     model_not_serving
        ├── LogUnavailable             503     log_unavailable
        ├── ModelsUnwritable           503     models_unwritable
        ├── StorageUnavailable         503     storage_unavailable
        ├── DeadlineExceeded           504     deadline_exceeded
        └── Overloaded                 503     overloaded
            └── OverShare              429     over_share

    OperatorError                      never reaches HTTP: a command or the start-up ends with its one line
    ├── InvalidSettings
    ├── InvalidTrainingData
    ├── MigrationFailed
    ├── PublishRefused
    ├── SigningRefused
    └── VersionRefused                 a version on disk that is not served, with a reason code
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong with one place of a request.

    `row` counts from 0 in a batch; `field` is a name from the model's own manifest, never one that the caller chose.
    """

    code: str
    detail: str
    field: str | None = None
    row: int | None = None


class PresageError(Exception):
    """What the caller may know: a status, a stable code, a title and a sentence."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        retry_after: int | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        **members: Any,
    ) -> None:
        """`members` are further members of the problem document; `retry_after` is in whole seconds."""
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.retry_after = retry_after
        self.headers = headers
        self.members: Mapping[str, Any] = members


class RequestRefused(PresageError):
    """The request is wrong; repeating it unchanged will not help."""

    status = 400
    code = "request_refused"
    title = "The request was refused"


class UnknownHost(RequestRefused):
    """The request is addressed to a name that this service does not go by."""

    code = "unknown_host"
    title = "Unknown host"


class AmbiguousCredentials(RequestRefused):
    """More than one credential came with the request, and which one counts would be a guess."""

    code = "ambiguous_credentials"
    title = "More than one credential"


class MalformedRequest(RequestRefused):
    """What came is not HTTP as it should be, or can be read in two ways."""

    code = "malformed_request"
    title = "Malformed HTTP request"


class Unauthenticated(RequestRefused):
    """The route needs a credential, and none came."""

    status = 401
    code = "unauthenticated"
    title = "A credential is needed"


class InvalidCredential(Unauthenticated):
    """The token or key is unknown, expired, revoked, or not for this service; which of these is not said."""

    code = "invalid_credential"
    title = "The credential is not valid"


class Forbidden(RequestRefused):
    """The credential is good, and does not permit this."""

    status = 403
    code = "forbidden"
    title = "Not permitted"


class InvalidTokenRequest(RequestRefused):
    """A request for a token is wrong; the codes are those of RFC 6749, section 5.2."""

    code = "invalid_request"
    title = "The token request is wrong"


class InvalidClient(InvalidTokenRequest):
    """No such client, or not that secret; the answer is the same for both."""

    status = 401
    code = "invalid_client"
    title = "Client authentication failed"


class InvalidGrant(InvalidTokenRequest):
    """No such user, or not that password; the answer is the same for both."""

    code = "invalid_grant"
    title = "Authentication failed"


class InvalidScope(InvalidTokenRequest):
    """A scope is unknown, or more than the client may have."""

    code = "invalid_scope"
    title = "The scope is not granted"


class UnauthorizedClient(InvalidTokenRequest):
    """The client is known, and its kind gets tokens by another grant."""

    code = "unauthorized_client"
    title = "The grant is not for this client"


class UnsupportedGrantType(InvalidTokenRequest):
    """There are `client_credentials` and `password`."""

    code = "unsupported_grant_type"
    title = "The grant type is not supported"


class MalformedJson(RequestRefused):
    """The body is not JSON."""

    status = 400
    code = "malformed_json"
    title = "The body is not valid JSON"


class NotFound(RequestRefused):
    """There is nothing at that path."""

    status = 404
    code = "not_found"
    title = "Not found"


class ModelNotFound(NotFound):
    """No model of that name exists."""

    code = "model_not_found"
    title = "No such model"


class VersionNotFound(NotFound):
    """The model exists; that version or alias of it is not served."""

    code = "version_not_found"
    title = "No such version"


class PredictionNotFound(NotFound):
    """No prediction of that id is on record."""

    code = "prediction_not_found"
    title = "No such prediction"


class ClientNotFound(NotFound):
    """No client, key or token of that name is registered."""

    code = "client_not_found"
    title = "No such client"


class RequestTimeout(RequestRefused):
    """The request took longer to come than it may."""

    status = 408
    code = "request_timeout"
    title = "The request took too long to come"


class ClientExists(RequestRefused):
    """A client of that name is registered already."""

    status = 409
    code = "client_exists"
    title = "The client exists"


class ReleaseRefused(RequestRefused):
    """What a model's names stand for stays as it is: the change would not be sound."""

    status = 409
    code = "release_refused"
    title = "The change is refused"


class AliasProtected(ReleaseRefused):
    """The champion changes by a promotion or a rollback, and is never taken away."""

    code = "alias_protected"
    title = "The alias is not set by hand"


class ChampionChanged(ReleaseRefused):
    """Somebody else changed the champion while the evidence for this promotion was gathered."""

    code = "champion_changed"
    title = "The champion is another one by now"


class NothingToRollBack(ReleaseRefused):
    """No previous champion is known."""

    code = "nothing_to_roll_back"
    title = "There is nothing to roll back to"


class PromotionRefused(ReleaseRefused):
    """The evidence speaks against the candidate; it comes with the answer."""

    code = "promotion_refused"
    title = "The promotion is refused"


class VersionUnusable(ReleaseRefused):
    """The version exists on disk and would not be served."""

    code = "version_unusable"
    title = "The version cannot be served"


class MethodNotAllowed(RequestRefused):
    """The path exists, for other methods."""

    status = 405
    code = "method_not_allowed"
    title = "Method not allowed"


class BodyTooLarge(RequestRefused):
    """The body has more bytes than the route takes."""

    status = 413
    code = "body_too_large"
    title = "The body is too large"


class TooManyRows(RequestRefused):
    """The batch has more rows than one request may carry."""

    status = 413
    code = "too_many_rows"
    title = "The batch has too many rows"


class BatchExceedsPlan(RequestRefused):
    """The batch has more rows than the caller's plan ever has room for; smaller batches will pass."""

    status = 413
    code = "batch_exceeds_plan"
    title = "The batch exceeds the plan"


class UrlTooLong(RequestRefused):
    """The path and query have more bytes than they may."""

    status = 414
    code = "url_too_long"
    title = "The URL is too long"


class RateLimited(RequestRefused):
    """The caller's plan, or the address's budget, is used up for now."""

    status = 429
    code = "rate_limited"
    title = "Too many requests"


class TooManyConnections(RateLimited):
    """One address has more connections open than it may."""

    code = "too_many_connections"
    title = "Too many connections"


class HeadersTooLarge(RequestRefused):
    """The headers are more, or larger, than they may be."""

    status = 431
    code = "headers_too_large"
    title = "The headers are too large"


class UnsupportedMediaType(RequestRefused):
    """The body is not sent as plain JSON."""

    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"


class InvalidInput(RequestRefused):
    """The JSON does not fit the route or the model."""

    status = 422
    code = "invalid_input"
    title = "The input does not fit"

    @classmethod
    def because(cls, errors: Sequence[FieldError], **members: Any) -> Self:
        """With the first of the errors as the sentence for people."""
        first = errors[0]
        detail = f"{first.field} {first.detail}" if first.field else first.detail
        more = f"; and {len(errors) - 1} more" if len(errors) > 1 else ""
        return cls(detail + more, errors=errors, **members)


class InternalError(PresageError):
    """Something of ours failed; the log has the rest under the request id."""

    title = "Internal error"


class ModelFailed(InternalError):
    """The fitted model raised, or answered something that is not a prediction."""

    code = "model_failed"
    title = "The model failed"


class Unavailable(PresageError):
    """Not now; the same request may succeed later."""

    status = 503
    code = "unavailable"
    title = "Unavailable"


class NotReady(Unavailable):
    """Models are still being loaded, or a required one is not served."""

    code = "not_ready"
    title = "Not ready"


class VersionBeingLoaded(NotReady):
    """A version that no alias names, which is being loaded since somebody has asked for it."""

    def __init__(self, model: str, version: int, *, retry_after: int) -> None:
        super().__init__(f"{model} {version} is being loaded", retry_after=retry_after)
        self.model = model
        self.version = version


class ModelNotServing(Unavailable):
    """The version exists on disk and was refused; `/health/ready` has the reason."""

    code = "model_not_serving"
    title = "The model is not being served"


class LogUnavailable(Unavailable):
    """A prediction could not be put on record, and the policy is not to answer without."""

    code = "log_unavailable"
    title = "The prediction log is unavailable"


class ModelsUnwritable(Unavailable):
    """The folder of models cannot be written here; what is served stays as it is."""

    code = "models_unwritable"
    title = "The models cannot be changed"


class StorageUnavailable(Unavailable):
    """The database does not answer, or lacks a migration; predictions do not need it."""

    code = "storage_unavailable"
    title = "The database is unavailable"


class Overloaded(Unavailable):
    """More work is waiting than can be finished soon."""

    code = "overloaded"
    title = "Overloaded"


class OverShare(Overloaded):
    """More work is waiting than can be finished soon, and the caller has more of it than an equal part."""

    status = 429
    code = "over_share"
    title = "More than an equal share of what waits"


class DeadlineExceeded(Unavailable):
    """There is no answer within the time that the request has, or there could not be one.

    `worked`: the model has been asked all the same, so that it was not for nothing to us.
    """

    worked = False

    status = 504
    code = "deadline_exceeded"
    title = "The time for an answer is over"


class OperatorError(Exception):
    """Wrong in a way that the person at the terminal can mend; its text is the whole message."""


class InvalidSettings(OperatorError):
    """One or more environment variables have values that cannot be used."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("invalid settings\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = tuple(problems)


class InvalidTrainingData(OperatorError):
    """A file of training data lacks a column, holds a value that cannot be used, or is too small."""


class MigrationFailed(OperatorError):
    """The database could not be brought to the shape that this release needs."""


class PublishRefused(OperatorError):
    """A version cannot be published: the name is taken, or the estimator does not do what its manifest says."""


class SigningRefused(OperatorError):
    """A key cannot be made or used, or what it would sign is broken."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a version on disk is not served: a stable `reason`, and a sentence for the operator.

    `reason` is public (it stands in `/health/ready`); `detail` may name files and stays in the log.
    """

    reason: str
    detail: str = field(default="")


class VersionRefused(OperatorError):
    """A version on disk that must not be served."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.refusal = Refusal(reason, detail)
