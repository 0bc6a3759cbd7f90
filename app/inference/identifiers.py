"""Ids: of predictions, UUID version 7 (RFC 9562), so that they sort by time and a database index stays compact.

Random bytes come from the system, many at a time: asking for each id would cost more than the rest of it.
"""

import os
import time

# Where a batch begins to count: with the top bit free, it cannot overflow.
_HALF = (1 << 59) - 1
_POOLED = 256

# Used once each: `pop` gives no chunk to two threads, and a process that is forked begins with none.
_chunks: list[bytes] = []
os.register_at_fork(after_in_child=_chunks.clear)


def _random_bytes() -> bytes:
    """Sixteen of them."""
    try:
        return _chunks.pop()
    except IndexError:
        drawn = os.urandom(16 * _POOLED)
        _chunks.extend(drawn[at : at + 16] for at in range(16, len(drawn), 16))
        return drawn[:16]


def random_hex() -> str:
    """128 random bits, for what only has to be different."""
    return _random_bytes().hex()


def new_ids(count: int) -> list[str]:
    """`count` ids of one millisecond, ascending by one: a batch's rows stand in order and share their random bits."""
    milliseconds = f"{time.time_ns() // 1_000_000:012x}"
    noise = random_hex()
    front = f"{milliseconds[:8]}-{milliseconds[8:]}-7{noise[:3]}-8"
    if count == 1:
        return [f"{front}{noise[3:6]}-{noise[6:18]}"]
    start = int(noise[3:18], 16) & _HALF
    tails = [f"{start + position:015x}" for position in range(count)]
    return [f"{front}{tail[:3]}-{tail[3:]}" for tail in tails]
