"""Memory keeps what was used last, within its bounds, and nothing beyond its age."""

import os
import tracemalloc

import pytest
from sklearn.dummy import DummyClassifier

from app.inference.entries import Entries
from app.inference.memory_cache import MemoryCache
from app.manifest import Outputs
from app.pipelines.base import Prediction
from tests.support.caching import model_of
from tests.support.limits import ManualClock
from tests.support.manifests import make_manifest
from tests.support.versions import X


def test_an_entry_is_forgotten_at_its_age() -> None:
    """To the moment, however often it is used; and its bytes with it."""
    clock = ManualClock()
    memory = MemoryCache(1000, clock=clock)
    memory.put(b"a", ("yes", None), 10, 5.0)
    clock.now = 4.999
    assert memory.get(b"a") == ("yes", None)
    clock.now = 5.0
    assert memory.get(b"a") is None
    assert (len(memory), memory.bytes) == (0, 0)


def test_what_was_not_used_for_longest_makes_room_for_bytes() -> None:
    """A look is a use; and what is larger than everything is not kept at all."""
    memory = MemoryCache(100)
    for name in (b"a", b"b", b"c"):
        memory.put(name, (name.decode(), None), 30, 60)
    memory.get(b"a")
    memory.put(b"d", ("d", None), 30, 60)
    memory.put(b"e", ("e", None), 101, 60)
    assert [name for name in (b"a", b"b", b"c", b"d", b"e") if memory.get(name)] == [b"a", b"c", b"d"]
    assert memory.bytes == 90


def test_the_number_of_entries_is_bounded_too() -> None:
    """However small they are."""
    memory = MemoryCache(1000, most_entries=2)
    for name in (b"a", b"b", b"c"):
        memory.put(name, ("yes", None), 1, 60)
    assert (len(memory), memory.bytes, memory.get(b"a")) == (2, 2, None)


def test_a_newer_entry_takes_the_place_of_an_older() -> None:
    """With its own age and size."""
    clock = ManualClock()
    memory = MemoryCache(1000, clock=clock)
    memory.put(b"a", ("old", None), 100, 5)
    clock.now = 4.0
    memory.put(b"a", ("new", None), 10, 5)
    clock.now = 8.0
    assert (memory.get(b"a"), len(memory), memory.bytes) == (("new", None), 1, 10)


@pytest.mark.parametrize("labels", [2, 20])
def test_the_bytes_are_about_what_python_takes(labels: int) -> None:
    """Within a third of what is allocated for many entries, keys and places included."""
    names = tuple(f"label-{number}" for number in range(labels))
    manifest = make_manifest(X, outputs=Outputs(target="t", labels=names, probabilities=True))
    entries = Entries(model_of(manifest, DummyClassifier().fit([[0.0]] * labels, names)))
    memory = MemoryCache(1 << 30)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(50_000):
        answer = Prediction(names[0], {name: (number + place) / 7 for place, name in enumerate(names)})
        entry = entries.pack(answer)
        assert entry is not None
        memory.put(os.urandom(32), entry, entries.bytes, 60)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.66 < memory.bytes / taken < 1.5
