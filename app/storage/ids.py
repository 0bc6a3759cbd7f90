"""Ids as places in time: a UUID of version 7 begins with the milliseconds since 1970.

So a window of time is a range of ids, and the primary key is the only index that it needs. The clock that counts is the
one in the id, to the millisecond.
"""

import base64
import binascii
import os
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

# What a cursor looks like: 16 bytes in base64, whose last letter stands for two bits.
CURSOR = "^[A-Za-z0-9_-]{21}[AQgw]$"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_LATEST = (1 << 48) - 1
_BELOW_TIME = 80
_VERSION = 7
_VERSION_AND_VARIANT = (_VERSION << 76) | (2 << 62)
_RANDOM = ~((0xF << 76) | (0x3 << 62)) & ((1 << _BELOW_TIME) - 1)


def lowest_id(instant: datetime) -> UUID:
    """What every id made at `instant` or later is not less than, and every earlier one is less than.

    An id made during the millisecond in which `instant` falls counts as made at that millisecond's beginning.
    """
    milliseconds = -((_EPOCH - instant) // _MILLISECOND)  # upwards
    return UUID(int=min(max(milliseconds, 0), _LATEST) << _BELOW_TIME)


def milliseconds_of(identifier: UUID) -> int:
    """When it was made, in milliseconds since 1970; without meaning for an id of another version."""
    return identifier.int >> _BELOW_TIME


def may_exist(identifier: UUID, now: datetime) -> bool:
    """Whether such an id can have been given out by now, allowing for clocks that differ by a minute."""
    made_by = now + timedelta(minutes=1)
    return identifier.version == _VERSION and identifier < lowest_id(made_by)


def new_id() -> UUID:
    """One that was made now."""
    noise = int.from_bytes(os.urandom(10)) & _RANDOM
    return UUID(int=(time.time_ns() // 1_000_000 << _BELOW_TIME) | _VERSION_AND_VARIANT | noise)


def to_cursor(identifier: UUID) -> str:
    """A place between two pages, for callers to hand back and not to read."""
    return base64.urlsafe_b64encode(identifier.bytes).rstrip(b"=").decode()


def from_cursor(cursor: str) -> UUID:
    """Raises ValueError for what `to_cursor` did not make."""
    try:
        raw = base64.b64decode(cursor.encode("ascii") + b"==", altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise ValueError("not a cursor") from None
    identifier = UUID(bytes=raw)
    if to_cursor(identifier) != cursor:
        raise ValueError("not a cursor")
    return identifier
