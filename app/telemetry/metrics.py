"""Every instrument of the service, in one table, with its meaning.

Each application has a registry of its own, so that two of them in one process do not meet. Label values come from
routes, models that are loaded and fixed vocabularies, never from a caller.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, PlatformCollector, ProcessCollector
from prometheus_client.gc_collector import GCCollector

from app.telemetry.plain import PlainCounter, PlainHistogram

# Powers of two from 0.25 ms to 4 s: a linear model answers in the first ones, a large forest in the last.
SECONDS = tuple(0.00025 * 2**i for i in range(15))
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The instruments, and the registry that `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
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
        self.waiting = Gauge(
            "presage_rows_waiting",
            "Rows that wait for a model, or that it works on.",
            ["model", "version"],
            registry=registry,
        )
        self.serving = Gauge(
            "presage_model_serving",
            "1 for a version that is served, 0 for one that an alias names and that was refused.",
            ["model", "version"],
            registry=registry,
        )
        self.load_seconds = Gauge(
            "presage_model_load_seconds",
            "Time it took to read, verify and warm up a version.",
            ["model", "version"],
            registry=registry,
        )
        self.model_runtime = Gauge(
            "presage_model_runtime",
            "1 for what executes a version: the form that was chosen for each number of rows.",
            ["model", "version", "runtime"],
            registry=registry,
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
        self.log_writable = Gauge("presage_log_writable", "1 while the journal can be written.", registry=registry)
        self.log_database_up = Gauge(
            "presage_log_database_up", "1 while the database takes records.", registry=registry
        )
        self.log_pending_bytes = Gauge(
            "presage_log_pending_bytes", "Bytes of the journal that the database does not have yet.", registry=registry
        )
        self.log_lag_seconds = Gauge(
            "presage_log_lag_seconds",
            "Age of the oldest record that the database does not have yet.",
            registry=registry,
        )
        self.rate_limited = Counter(
            "presage_rate_limited_total",
            "Requests refused since a plan, the budget of an address, or failed attempts were used up.",
            ["kind"],
            registry=registry,
        )
        self.limits_redis_up = Gauge(
            "presage_limits_redis_up",
            "1 while limits are shared with other processes through Redis.",
            registry=registry,
        )
        self.ready = Gauge("presage_ready", "1 when every required model is served.", registry=registry)

        self._add_cache()
        self._hot: dict[tuple[str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}

    def _add_cache(self) -> None:
        registry = self.registry
        self.cache_rows = PlainCounter(
            "presage_cache_rows",
            "Rows asked of the cache: found in this process (hit_memory) or in Redis (hit_redis), answered by what "
            "another row like it was being asked (joined), or not answered (miss).",
            ["model", "version", "outcome"],
            registry,
        )
        self.cache_entries = Gauge("presage_cache_entries", "Answers kept in this process.", registry=registry)
        self.cache_bytes = Gauge("presage_cache_bytes", "Bytes that these take, about.", registry=registry)
        self.cache_redis_up = Gauge(
            "presage_cache_redis_up",
            "1 while answers are shared with other processes through Redis.",
            registry=registry,
        )
        self.cache_invalid = Counter(
            "presage_cache_invalid_total",
            "Answers found in Redis that the model could not have given, and that nobody got.",
            ["model", "version"],
            registry=registry,
        )

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
