"""Metrics of several workers are shown as those of one service, whoever is asked, is killed, or hangs."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from copy import copy
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from structlog.testing import capture_logs

from app.board import REASONS, Board
from app.config import ModelSettings, Settings, StorageSettings
from app.limits.columns import REGION_BYTES
from app.registry.registry import ModelRegistry
from app.telemetry.bulletins import Bulletins
from app.telemetry.metrics import Metrics
from app.telemetry.process import proportional_bytes
from app.telemetry.shared import Snapshots
from app.wiring import Inheritance
from tests.support.asgi import OPEN, UNLIMITED, in_process
from tests.support.forked import Samples, Service, count, forked_service, samples

REQUESTS = 'http_requests_total{"handler": "/predict", "method": "POST", "status": "200"}'
RECORDED = "presage_log_recorded_total"
WAITING = 'presage_rows_waiting{"model": "iris", "version": "1"}'

linux = pytest.mark.skipif(not hasattr(os, "eventfd"), reason="elsewhere workers publish in their own time")


@pytest.fixture
def service() -> Iterator[Service]:
    """Two workers; there is room for more."""
    with forked_service(2) as running:
        running.tell("start", 0)
        running.tell("start", 1)
        yield running


@linux
def test_whoever_is_asked_shows_what_all_have_counted_until_now(service: Service) -> None:
    """Not what they published by themselves, up to a second ago; nor what was counted before they were forked."""
    for i in range(1, 20):
        service.tell("count", i % 2, times=3)
        found = service.scrape((i + 1) % 2)
        assert (found[REQUESTS], found[RECORDED]) == (3 * i, 3 * i)


def test_histograms_are_consistent(service: Service) -> None:
    """Buckets ascend, and the last one is the count."""
    service.tell("count", 0, times=3)
    service.tell("count", 1, times=4)
    text = service.tell("scrape", 1)["text"]
    (family,) = (f for f in text_string_to_metric_families(text) if f.name == "http_request_duration_seconds")
    buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == samples(text)['http_request_duration_seconds_count{"handler": "/predict", "method": "POST"}']


def test_what_was_shown_is_never_lost_by_a_kill(service: Service) -> None:
    """Workers are killed in the middle of counting and publishing; others take their slots; no counter ever falls."""
    shown: Samples = {}
    service.tell("keep_counting", 0)
    for i in range(12):
        slot = 1 + i % 2
        service.tell("start", slot) if i else None
        service.tell("keep_counting", slot)
        for asked in (slot, 0, slot):
            found = service.scrape(asked)
            fallen = {key: (value, found.get(key)) for key, value in shown.items() if found.get(key, -1) < value}
            assert fallen == {}
            shown = {key: value for key, value in found.items() if _grows(key)}
        service.tell("kill", slot)
    assert shown[REQUESTS] > 100


def _grows(key: str) -> bool:
    return key.partition("{")[0].endswith(("_total", "_bucket", "_count", "_sum"))


def test_what_the_dead_counted_stays_and_their_gauges_vanish(service: Service) -> None:
    """Whether they were killed or left; the last counts of who leaves are published, too."""
    for slot, rows, ready in ((0, 2, 1), (1, 5, 0)):
        service.tell("count", slot, times=1)
        service.tell("set", slot, gauge="waiting", value=rows)
        service.tell("set", slot, gauge="ready", value=ready)
    both = service.scrape(0)
    assert (both[REQUESTS], both[WAITING], both["presage_ready"]) == (2, 7, 0)

    service.tell("kill", 1)
    one = service.scrape(0)
    assert (one[REQUESTS], one[WAITING], one["presage_ready"]) == (2, 2, 1)

    service.tell("start", 1)
    service.tell("count", 1, times=40)
    service.tell("set", 1, gauge="waiting", value=100)
    service.tell("leave", 1)
    left = service.scrape(0)
    assert (left[REQUESTS], left[WAITING]) == (42, 2)


@linux
def test_a_worker_that_hangs_is_shown_as_it_was_and_holds_nobody_up(service: Service) -> None:
    """A tenth of a second is what it may cost, and the two that wait for it do not keep one another busy."""
    service.tell("start", 2)
    service.tell("count", 1, times=7)
    assert service.scrape(0)[REQUESTS] == 7
    service.tell("signal", 1, number=signal.SIGSTOP)
    before = [service.tell("sequence", slot) for slot in (0, 2)]
    service.tell("count", 0, times=1)
    for asked in (0, 2):
        answer = service.tell("scrape", asked)
        assert answer["seconds"] < 0.2
        assert samples(answer["text"])[REQUESTS] == 8
    assert sum(service.tell("sequence", slot) for slot in (0, 2)) - sum(before) < 10
    service.tell("signal", 1, number=signal.SIGCONT)


def test_a_worker_publishes_without_being_asked(service: Service) -> None:
    """So that a kill loses a second at most."""
    service.tell("count", 1, times=5)
    before = service.tell("sequence", 1)
    deadline = time.monotonic() + 10
    while service.tell("sequence", 1) == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    service.tell("kill", 1)
    assert service.scrape(0)[REQUESTS] == 5


def test_the_supervisor_says_how_many_workers_there_are_and_why_some_were_replaced(service: Service) -> None:
    """Every reason is shown from the beginning."""
    service.tell("note_restart", 0, reason="hung")
    service.tell("kill", 1)
    found = service.scrape(0)
    assert found['presage_workers{"state": "wanted"}'] == 2
    assert found['presage_workers{"state": "serving"}'] == 1
    restarts = {reason: found[f'presage_worker_restarts_total{{"reason": "{reason}"}}'] for reason in REASONS}
    assert restarts == {"killed": 0, "hung": 1, "memory": 0, "start_failed": 0}


def test_memory_that_workers_share_is_counted_once(service: Service) -> None:
    """The sum is not twice what each of them has, most of which they have from before the fork."""
    if not proportional_bytes():
        pytest.skip("the kernel does not tell a process's share")
    found = service.scrape(0)
    assert 0 < found["process_resident_memory_bytes"] < _resident(service.process.pid) * 1.5
    assert found["process_open_fds"] >= 6


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def test_a_snapshot_that_does_not_fit_leaves_the_former_one() -> None:
    """With one line in the log, however often it is tried."""

    async def check() -> None:
        board, metrics = Board(1), Metrics()
        board.enter(0)
        bulletins = Bulletins(1, area_bytes=16 << 10)
        async with Snapshots(bulletins, board, metrics) as snapshots:
            count(metrics)
            await snapshots.refresh()
            for i in range(2000):
                metrics.record_hot(f"/v2/predict/{i}", 200, 0.1)
            with capture_logs() as logged:
                await snapshots.refresh()
                await snapshots.refresh()
            assert [line["event"] for line in logged] == ["metrics_too_large"]
            assert samples(snapshots.exposition().decode())[REQUESTS] == 1
        bulletins.close()

    asyncio.run(check())


def test_the_route_shows_all_workers(tmp_path: Path) -> None:
    """And has the type and the form that it has with one."""
    storage = StorageSettings(database_url=SecretStr(f"sqlite:///{tmp_path}/db"), journal_dir=tmp_path / "journal")
    models = ModelSettings(models_dir=tmp_path / "models")
    settings = Settings(auth=OPEN, limits=UNLIMITED, models=models, storage=storage)
    board, sibling = Board(2), Metrics()
    its_board = copy(board)  # as each process has its own, of the same memory
    board.enter(0)
    its_board.enter(1)
    bulletins = Bulletins(board.slots)
    snapshots = Snapshots(bulletins, board, Metrics())
    columns = board.regions(board.slots, REGION_BYTES)
    with in_process(settings, Inheritance(board, ModelRegistry(models, snapshots.metrics), snapshots, columns)) as app:
        app.run(Snapshots(bulletins, its_board, sibling).__aenter__())
        count(sibling)
        count(app.app.state.metrics)
        answer = app.request("GET", "/metrics")
        assert answer.header("content-type") == "text/plain; version=1.0.0; charset=utf-8"
        found = samples(answer.body.decode())
        assert found[REQUESTS] == 2
        assert found['presage_workers{"state": "wanted"}'] == 2
    bulletins.close()
