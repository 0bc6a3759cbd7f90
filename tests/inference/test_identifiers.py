"""Prediction ids are UUIDs of version 7, in order, and never twice."""

import time
from uuid import UUID

from app.inference.identifiers import new_ids


def test_ids_are_uuids_of_version_7_with_the_time_in_them() -> None:
    """The first 48 bits are milliseconds since 1970; version and variant are where RFC 9562 wants them."""
    before = time.time_ns() // 1_000_000
    identifier = UUID(new_ids(1)[0])
    assert identifier.version == 7
    assert identifier.variant == "specified in RFC 4122"
    assert before <= identifier.int >> 80 <= time.time_ns() // 1_000_000


def test_the_ids_of_a_batch_ascend_by_one() -> None:
    """So the id of the first row tells those of all."""
    numbers = [UUID(identifier).int for identifier in new_ids(10_000)]
    assert [number - numbers[0] for number in numbers] == list(range(10_000))


def test_no_id_comes_twice() -> None:
    """A hundred thousand calls, a hundred thousand ids."""
    assert len({new_ids(1)[0] for _ in range(100_000)}) == 100_000
