"""Every instrument of the service, in one table, with its meaning, and how the gauges of several workers become one.

Each application has a registry of its own, so that two of them in one process do not meet. Label values come from
routes, models that are loaded and fixed vocabularies, never from a caller. What the supervisor counts is on the board.
"""

from collections.abc import Callable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, PlatformCollector, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.registry import Collector

from app.telemetry.families import Family, families_of
from app.telemetry.merging import Merge
from app.telemetry.plain import PlainCounter, PlainHistogram
from app.telemetry.process import Process

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Powers of two from 0.25 ms to 4 s: a linear model answers in the first ones, a large forest in the last.
SECONDS = tuple(0.00025 * 2**i for i in range(15))
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
# Of one row: from a microsecond to eleven seconds, each half as long again as the one before, so that medians compare.
ROW_SECONDS = tuple(1e-6 * 1.5**i for i in range(41))
DIFFERENCES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# The library's own gauges. The memory of each worker is its share, so the sum counts no page twice.
_PROCESS_GAUGES: dict[str, Merge] = {
    "process_virtual_memory_bytes": sum,
    "process_resident_memory_bytes": sum,
    "process_start_time_seconds": min,
    "process_open_fds": sum,
    "process_max_fds": min,
    "python_info": max,
}


def forget(gauge: Gauge, *labels: str) -> None:
    """Remove a series whose value is a function's: it keeps itself alive, and with it whatever the function knows."""
    gauge.labels(*labels).set_function(int)
    gauge.remove(*labels)


class Registry(CollectorRegistry):
    """The library's, which also says what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        """Raises ValueError for a second one of that name."""
        super().register(collector)
        self.collectors.append(collector)


class Metrics:
    """The instruments, and the registry that `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = registry = Registry()
        self.merges = dict(_PROCESS_GAUGES)
        self.process = Process(registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        self.http_requests = PlainCounter(
            "http_requests", "Requests answered.", ["method", "handler", "status"], registry
        )
        self.http_seconds = PlainHistogram(
            "http_request_duration_seconds",
            "Time from the first byte of a request's head to the end of its answer.",
            ["method", "handler"],
            SECONDS,
            registry,
        )
        self.predictions = PlainCounter(
            "presage_predictions",
            "Rows answered with a prediction, by the label predicted (regression: empty).",
            ["model", "version", "label"],
            registry,
        )
        self.row_errors = PlainCounter(
            "presage_row_errors", "Rows answered with an error, by its code.", ["model", "version", "code"], registry
        )
        self.model_seconds = PlainHistogram(
            "presage_model_duration_seconds",
            "Time a call of the fitted estimator took, encoding and decoding included.",
            ["model", "version"],
            SECONDS,
            registry,
        )
        self.call_rows = PlainHistogram(
            "presage_call_rows", "Rows in a call of the fitted estimator.", ["model", "version"], ROWS, registry
        )
        self.waiting = self._gauge(
            "presage_rows_waiting", "Rows that wait for a model, or that it works on.", ["model", "version"], merge=sum
        )
        self.serving = self._gauge(
            "presage_model_serving",
            "1 for a version that is served, 0 for one that an alias names and that was refused.",
            ["model", "version"],
            merge=max,
        )
        self.load_seconds = self._gauge(
            "presage_model_load_seconds",
            "Time it took to read, verify and warm up a version.",
            ["model", "version"],
            merge=max,
        )
        self.model_runtime = self._gauge(
            "presage_model_runtime",
            "1 for what executes a version: the form that was chosen for each number of rows.",
            ["model", "version", "runtime"],
            merge=max,
        )
        self.runtime_fallbacks = Counter(
            "presage_runtime_fallbacks_total",
            "Calls in which a form raised and scikit-learn answered.",
            ["model", "version"],
            registry=registry,
        )
        self.log_recorded = Counter("presage_log_recorded_total", "Rows put into the journal.", registry=registry)
        self.log_lost = Counter(
            "presage_log_lost_total", "Rows answered without a record, under the policy best-effort.", registry=registry
        )
        self.log_drained = Counter("presage_log_drained_total", "Rows that the database took.", registry=registry)
        self.log_dead_letters = Counter(
            "presage_log_dead_letters_total", "Records that no database would take.", registry=registry
        )
        self.log_expired = Counter(
            "presage_log_expired_total", "Predictions deleted since they were past their age.", registry=registry
        )
        self.log_writable = self._gauge("presage_log_writable", "1 while the journal can be written.", merge=min)
        self.log_database_up = self._gauge("presage_log_database_up", "1 while the database takes records.", merge=min)
        self.log_pending_bytes = self._gauge(
            "presage_log_pending_bytes", "Bytes of the journal that the database does not have yet.", merge=sum
        )
        self.log_lag_seconds = self._gauge(
            "presage_log_lag_seconds", "Age of the oldest record that the database does not have yet.", merge=max
        )
        self.ready = self._gauge("presage_ready", "1 when every required model is served.", merge=min)
        self._hot: dict[tuple[str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}
        self._add_limits()
        self._add_cache()
        self._add_traffic()

    def _add_limits(self) -> None:
        registry = self.registry
        self.rate_limited = Counter(
            "presage_rate_limited_total",
            "Requests refused since a plan, the budget of an address, or failed attempts were used up.",
            ["kind"],
            registry=registry,
        )
        self.limits_redis_up = self._gauge(
            "presage_limits_redis_up", "1 while limits are shared with other processes through Redis.", merge=min
        )

    def _add_cache(self) -> None:
        registry = self.registry
        self.cache_rows = PlainCounter(
            "presage_cache_rows",
            "Rows asked of the cache: found in this process (hit_memory) or in Redis (hit_redis), answered by what "
            "another row like it was being asked (joined), or not answered (miss).",
            ["model", "version", "outcome"],
            registry,
        )
        self.cache_entries = self._gauge("presage_cache_entries", "Answers kept in this process.", merge=sum)
        self.cache_bytes = self._gauge("presage_cache_bytes", "Bytes that these take, about.", merge=sum)
        self.cache_redis_up = self._gauge(
            "presage_cache_redis_up", "1 while answers are shared with other processes through Redis.", merge=min
        )
        self.cache_invalid = Counter(
            "presage_cache_invalid_total",
            "Answers found in Redis that the model could not have given, and that nobody got.",
            ["model", "version"],
            registry=registry,
        )

    def _add_traffic(self) -> None:
        """`version` is the one that has answered, `shadow` the one that was tried beside it."""
        registry, pair = self.registry, ["model", "version", "shadow"]
        self.shadow_rows = PlainCounter(
            "presage_shadow_rows",
            "Answered rows offered to a shadow: it said the same (agreed) or not (flipped), raised (failed), does not "
            "take such a row (refused), or had no time for it (dropped).",
            [*pair, "outcome"],
            registry,
        )
        self.shadow_flips = PlainCounter(
            "presage_shadow_flips",
            "Rows for which the shadow said another label, by what was answered and what it said; labels beyond the "
            "first 20 are `other`.",
            [*pair, "answered", "said"],
            registry,
        )
        self.shadow_difference = PlainHistogram(
            "presage_shadow_difference",
            "By how much the shadow's score of the answered label was up or down; for a regression its number, in "
            "standard deviations of what training saw.",
            [*pair, "direction"],
            DIFFERENCES,
            registry,
        )
        self.shadow_seconds = PlainHistogram(
            "presage_shadow_row_seconds",
            "Time a row took in the same call, by who took it: the version that answered (answer), or the shadow.",
            [*pair, "by"],
            ROW_SECONDS,
            registry,
        )
        self.traffic_stopped = self._gauge(
            "presage_traffic_stopped",
            "1 for a challenger or a shadow that gets no rows, and why.",
            ["model", "version", "alias", "reason"],
            merge=max,
        )

    def _gauge(self, name: str, meaning: str, labels: Sequence[str] = (), *, merge: Merge) -> Gauge:
        self.merges[name] = merge
        return Gauge(name, meaning, labels, registry=self.registry)

    def families(self) -> list[Family]:
        """What all instruments say now, as plain data."""
        families: list[Family] = []
        for collector in self.registry.collectors:
            if isinstance(collector, PlainCounter | PlainHistogram):
                families.append(collector.family())
            else:
                families += families_of(collector)
        return families

    def exposition(self) -> bytes:
        """The text that Prometheus reads, of this process alone; its type is `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def record_hot(self, handler: str, status: int, seconds: float) -> None:
        """Count one POST to a hot route; its labels are looked up once and then kept."""
        bound = self._hot.get((handler, status))
        if bound is None:
            count = self.http_requests.labels("POST", handler, str(status)).inc
            bound = self._hot[handler, status] = (count, self.http_seconds.labels("POST", handler).observe)
        bound[0]()
        bound[1](seconds)

    def record_http(self, method: str, handler: str, status: int | str, seconds: float) -> None:
        """Count one request that took the slow way."""
        method = method if method in METHODS else "OTHER"
        self.http_requests.labels(method, handler, str(status)).inc()
        self.http_seconds.labels(method, handler).observe(seconds)
