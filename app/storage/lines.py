"""A record as a line of the journal: its length and checksum in hexadecimal, then JSON, which holds no raw line break.

So a damaged line is known, and costs only itself.
"""

from collections.abc import Iterable, Iterator
from zlib import crc32

_HEADER = len("12345678 12345678 ")


def frame(payload: bytes) -> bytes:
    """A payload of JSON as the line that stands in a segment."""
    return b"%08x %08x %b\n" % (len(payload), crc32(payload), payload)


def unframe(line: bytes) -> bytes | None:
    """The payload of a line without its line break; None when it is damaged."""
    payload = line[_HEADER:]
    return payload if line[:_HEADER] == b"%08x %08x " % (len(payload), crc32(payload)) else None


def whole_lines(block: bytes, *, last: bool) -> tuple[list[bytes], int]:
    """The lines of a block, and how many bytes they take; `last` says that its end is the end of a record."""
    end = len(block) if last else block.rfind(b"\n") + 1
    return block[:end].split(b"\n"), end


def payloads(lines: Iterable[bytes]) -> Iterator[tuple[bytes, bytes | None]]:
    """Each line that holds anything, with its payload, or None where it is damaged."""
    return ((line, unframe(line)) for line in lines if line)


def unchecked_payloads(appended: Iterable[bytes]) -> list[bytes]:
    """Those of lines as they were appended, which no disk can have damaged."""
    return [line[_HEADER:] for lines in appended for line in lines.split(b"\n") if line]
