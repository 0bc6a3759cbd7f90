"""Prediction ids: UUID version 7 (RFC 9562), so that they sort by time and a database index stays compact."""

import os
import time

_VERSION_AND_VARIANT = (7 << 76) | (2 << 62)
_RANDOM_BITS = 62
_TOP = (1 << _RANDOM_BITS) - 1


def new_ids(count: int) -> list[str]:
    """`count` ids of one millisecond, ascending by one: a batch's rows stand in order and share their random bits."""
    noise = int.from_bytes(os.urandom(10))
    start = noise & (_TOP >> 1)  # the top bit is free, so that counting up cannot overflow
    high = (time.time_ns() // 1_000_000 << 80) | ((noise >> _RANDOM_BITS & 0xFFF) << 64) | _VERSION_AND_VARIANT
    return [_dashed(high | (start + position)) for position in range(count)]


def _dashed(number: int) -> str:
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
