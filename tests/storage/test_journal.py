"""The journal: whole records or none, in order, through deaths, damage and full disks."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.storage.journal import Journal, JournalError, Segment, segment_paths
from app.storage.lines import frame, payloads, unchecked_payloads, unframe, whole_lines
from tests.support.server import ROOT


def _journal(folder: Path, **options: int) -> Journal:
    return Journal(folder, **{"max_bytes": 1 << 30, **options})


def _next(journal: Journal, segment: Segment, most: int = 1 << 20) -> tuple[list[bytes | None], int]:
    """The payloads that stand next, None for a damaged one, and their bytes: from memory, or else from the file."""
    taken = journal.take(segment, most)
    if taken:
        return list(unchecked_payloads(taken)), sum(map(len, taken))
    unread = segment.unread
    lines, count = whole_lines(segment.read(min(most, unread)), last=most >= unread)
    return [payload for _, payload in payloads(lines)], count


def _drain(journal: Journal) -> list[bytes | None]:
    """Every payload there, acknowledged."""
    found: list[bytes | None] = []
    for segment in journal.segments():
        while segment.pending:
            records, count = _next(journal, segment)
            found += records
            journal.acknowledge(segment, count)
    return found


@given(payload=st.binary().filter(lambda b: b"\n" not in b))
def test_a_framed_payload_comes_out_again(payload: bytes) -> None:
    """Whatever it holds, but for line breaks, which JSON never does."""
    assert unframe(frame(payload)[:-1]) == payload


@given(payload=st.binary(min_size=1, max_size=50).filter(lambda b: b"\n" not in b), data=st.data())
def test_any_flipped_bit_is_noticed(payload: bytes, data: st.DataObject) -> None:
    """In the header or in the payload; only the case of the header's digits says nothing."""
    line = bytearray(frame(payload)[:-1])
    position = data.draw(st.integers(0, len(line) - 1))
    line[position] ^= 1 << data.draw(st.integers(0, 7))
    changed = unframe(bytes(line))
    assert changed is None or changed == payload


def test_records_come_out_in_the_order_they_went_in(tmp_path: Path) -> None:
    """Across segments, and with acknowledgements in between."""
    journal = _journal(tmp_path, segment_bytes=200)
    expected = [b'{"n": %d}' % n for n in range(100)]
    for record in expected[:50]:
        journal.append(frame(record))
    first = _drain(journal)
    for record in expected[50:]:
        journal.append(frame(record))
    assert first + _drain(journal) == expected
    assert journal.pending == 0


def test_drained_segments_are_deleted(tmp_path: Path) -> None:
    """All but the one that is being written."""
    journal = _journal(tmp_path, segment_bytes=100)
    for n in range(20):
        journal.append(frame(b'{"n": %d}' % n))
    assert len(segment_paths(tmp_path)) > 3
    _drain(journal)
    assert len(segment_paths(tmp_path)) == 1
    journal.rotate()
    assert segment_paths(tmp_path) == []


def test_many_records_of_one_request_are_one_write(tmp_path: Path) -> None:
    """A batch is in the journal whole, whatever its size."""
    journal = _journal(tmp_path, segment_bytes=100)
    batch = [b'{"n": %d}' % n for n in range(1_000)]
    journal.append(b"".join(map(frame, batch)))
    assert _drain(journal) == batch


def test_a_journal_that_is_full_takes_nothing_until_it_is_drained(tmp_path: Path) -> None:
    """The bound counts what the database does not have."""
    journal = _journal(tmp_path, max_bytes=100)
    record = frame(b'{"n": 1}')
    for _ in range(100 // len(record)):
        journal.append(record)
    with pytest.raises(JournalError) as caught:
        journal.append(record)
    assert caught.value.reason == "full"
    _drain(journal)
    journal.append(record)
    assert journal.pending == len(record)


def test_a_folder_that_cannot_be_written_is_an_error_with_a_reason(tmp_path: Path) -> None:
    """Here, since a file stands in its place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError) as caught:
        _journal(tmp_path / "file/journal").append(frame(b"{}"))
    assert caught.value.reason == "unwritable"


def test_a_record_that_the_disk_takes_in_part_is_taken_back(tmp_path: Path) -> None:
    """A limit on the size of files stands for a disk that fills up in the middle of a record."""
    journal = _journal(tmp_path)
    journal.append(frame(b'{"n": 1}'))
    before = segment_paths(tmp_path)[0].stat().st_size
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before + 10, limits[1]))
    try:
        with pytest.raises(JournalError) as caught:
            journal.append(frame(b'{"n": 2}'))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.reason == "unwritable"
    assert segment_paths(tmp_path)[0].stat().st_size == before
    journal.append(frame(b'{"n": 3}'))
    assert _drain(journal) == [b'{"n": 1}', b'{"n": 3}']
    assert len(segment_paths(tmp_path)) == 1  # the one that met the limit is gone, and its room with it


def _leave_behind(folder: Path, records: list[bytes]) -> Path:
    """A segment of a process that is dead."""
    journal = _journal(folder)
    for record in records:
        journal.append(frame(record))
    path = segment_paths(folder)[0]
    journal.close()
    return path


def test_a_tail_torn_at_any_byte_costs_only_its_record(tmp_path: Path) -> None:
    """The records before it come out whole, and the rest is known to be damaged."""
    records = [b'{"n": %d}' % n for n in range(3)]
    path = _leave_behind(tmp_path / "whole", records)
    raw = path.read_bytes()
    ends = [len(b"".join(map(frame, records[: n + 1]))) for n in range(3)]
    for cut_at in range(len(raw) + 1):
        folder = tmp_path / str(cut_at)
        folder.mkdir()
        (folder / path.name).write_bytes(raw[:cut_at])
        journal = _journal(folder)
        journal.adopt()
        whole = sum(end - 1 <= cut_at for end in ends)  # without its line break a last record is still whole
        found = _drain(journal)
        assert found[:whole] == records[:whole]
        assert found[whole:] in ([], [None])
        assert journal.pending == 0


def test_a_damaged_record_in_the_middle_costs_only_itself(tmp_path: Path) -> None:
    """Reading goes on at the next line."""
    path = _leave_behind(tmp_path, [b'{"n": %d}' % n for n in range(5)])
    raw = bytearray(path.read_bytes())
    raw[raw.index(b'{"n": 2}') + 5] ^= 1
    path.write_bytes(raw)
    journal = _journal(tmp_path)
    journal.adopt()
    assert _drain(journal) == [b'{"n": 0}', b'{"n": 1}', None, b'{"n": 3}', b'{"n": 4}']


_WRITER = """
import os, sys, time
from pathlib import Path
from app.storage.journal import Journal
from app.storage.lines import frame
journal = Journal(Path(sys.argv[1]), max_bytes=1 << 30)
for n in range(1000):
    journal.append(frame(b'{"n": %d}' % n))
print("written", flush=True)
sys.stdin.read()
"""


def test_segments_of_a_process_that_was_killed_are_adopted_and_of_a_living_one_are_not(tmp_path: Path) -> None:
    """SIGKILL drops the lock, and nothing that was appended is lost."""
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_WRITER), str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"written\n"
    journal = _journal(tmp_path)
    assert journal.adopt() == 0
    writer.kill()
    writer.communicate()
    assert journal.adopt() == 1
    assert journal.adopt() == 0
    assert _drain(journal) == [b'{"n": %d}' % n for n in range(1000)]
    assert segment_paths(tmp_path) == []


def test_two_journals_never_adopt_the_same_segment(tmp_path: Path) -> None:
    """Whoever has the lock has the segment."""
    _leave_behind(tmp_path, [b"{}"])
    first, second = _journal(tmp_path), _journal(tmp_path)
    assert (first.adopt(), second.adopt()) == (1, 0)
    assert _drain(first) == [b"{}"]
    assert second.adopt() == 0


def test_an_empty_segment_of_a_dead_process_is_removed(tmp_path: Path) -> None:
    """It holds nothing that anybody waits for."""
    journal = _journal(tmp_path)
    journal.append(b"")
    os.link(segment_paths(tmp_path)[0], tmp_path / "00000000000000000001-1-1.journal")
    journal.close()
    other = _journal(tmp_path)
    assert other.adopt() == 0
    assert other.pending == 0


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=30), block=st.integers(1, 500))
def test_lines_come_out_whole_whatever_the_block(sizes: list[int], block: int) -> None:
    """A block that ends inside a line gives the lines before it; one that holds no end of a line gives none."""
    records = [b"x" * size for size in sizes]
    rest = b"".join(map(frame, records))
    found: list[bytes | None] = []
    size = block
    while rest:
        lines, count = whole_lines(rest[:size], last=False)
        size = size * 2 if not count else block
        found += [payload for _, payload in payloads(lines)]
        rest = rest[count:]
    assert found == records


def test_what_is_synced_is_on_the_device(tmp_path: Path) -> None:
    """Sync reaches every segment that was written since the last one, and a second sync has nothing to do."""
    journal = _journal(tmp_path, segment_bytes=50)
    for _ in range(5):
        journal.append(frame(b"{}"))
    journal.sync()
    assert not journal._unsynced
    journal.append(frame(b"{}"))
    assert isinstance(next(iter(journal._unsynced)), Segment)


def test_an_old_segment_is_ended_so_that_what_is_drained_does_not_stay(tmp_path: Path) -> None:
    """A young one goes on, and an empty one is none."""
    journal = _journal(tmp_path)
    journal.append(frame(b"{}"))
    _drain(journal)
    journal.rotate(older_than=3600)
    assert len(segment_paths(tmp_path)) == 1
    journal.rotate(older_than=0)
    assert segment_paths(tmp_path) == []


def test_what_was_just_appended_comes_from_memory_once(tmp_path: Path) -> None:
    """If it is not acknowledged then, because the database failed, the file has it; what came later waits its turn."""
    journal = _journal(tmp_path)
    first, second = frame(b'{"n": 1}'), frame(b'{"n": 2}')
    journal.append(first)
    (segment,) = journal.segments()
    assert journal.take(segment, 1 << 20) == [first]
    journal.append(second)
    assert journal.take(segment, 1 << 20) == []
    assert segment.read(segment.unread) == first
    journal.acknowledge(segment, len(first))
    assert journal.take(segment, 1 << 20) == [second]
    journal.acknowledge(segment, len(second))
    assert (journal.pending, segment.unread, len(segment.kept)) == (0, 0, 0)


def test_damage_on_disk_does_not_reach_what_comes_from_memory(tmp_path: Path) -> None:
    """The database gets what was answered."""
    journal = _journal(tmp_path)
    journal.append(frame(b'{"n": 1}'))
    segment_paths(tmp_path)[0].write_bytes(b"garbage")
    assert _drain(journal) == [b'{"n": 1}']


def test_memory_is_bounded_over_all_segments(tmp_path: Path) -> None:
    """Past the bound the file alone has what waits, and what comes next is kept again."""
    journal = _journal(tmp_path, segment_bytes=200, kept_bytes=500)
    records = [b'{"n": %d}' % n for n in range(100)]
    for record in records:
        journal.append(frame(record))
        assert sum(len(lines) for segment in journal.segments() for lines in segment.kept) <= 500
    assert any(segment.kept for segment in journal.segments())
    assert any(segment.unread for segment in journal.segments())
    assert _drain(journal) == records


_Step = tuple[str, int]
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 5)),
        st.tuples(st.sampled_from(["drain", "fail"]), st.integers(60, 300)),
        st.tuples(st.just("rotate"), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS)
def test_every_record_comes_out_once_and_in_order(tmp_path_factory: pytest.TempPathFactory, steps: list[_Step]) -> None:
    """However appending, draining, a database that fails, segments that end and memory that runs out take turns."""
    journal = _journal(tmp_path_factory.mktemp("journal"), segment_bytes=150, kept_bytes=250)
    appended: list[bytes | None] = []
    found: list[bytes | None] = []
    for what, size in steps:
        if what == "append":
            batch = [b'{"n": %d}' % (len(appended) + n) for n in range(size)]
            journal.append(b"".join(map(frame, batch)))
            appended += batch
        elif what == "rotate":
            journal.rotate()
        elif waiting := journal.segments():
            records, count = _next(journal, waiting[0], size)
            if what == "drain":
                found += records
                journal.acknowledge(waiting[0], count)
    assert found + _drain(journal) == appended
    assert journal.pending == 0
    journal.close()
