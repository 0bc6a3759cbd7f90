"""Times as callers write them: ISO 8601 with a time zone, nothing else that a parser could take for one."""

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Strict
from pydantic_core import PydanticCustomError

_WRITTEN = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
# In whatever zone they are written, these are times in UTC that every database can hold.
_FIRST_YEAR, _LAST_YEAR = 1970, 9998


def _is_written(value: Any) -> Any:
    """Numbers would be seconds or milliseconds, by their size."""
    if not isinstance(value, str) or not _WRITTEN.fullmatch(value):
        raise PydanticCustomError("datetime_parsing", "must be a time with its zone")
    return value


def _can_be_kept(value: datetime) -> datetime:
    if not _FIRST_YEAR <= value.year <= _LAST_YEAR:
        raise PydanticCustomError("datetime_range", "must be in 1970 or later, and before 9999")
    return value


Instant = Annotated[AwareDatetime, Strict(strict=False), BeforeValidator(_is_written)]
StoredInstant = Annotated[Instant, AfterValidator(_can_be_kept)]
