"""Structured logs: one event a line, named in snake_case, its data as keys.

Everything that logs through the standard library (uvicorn, warnings) comes out in the same form.
"""

import logging
import sys
from functools import partial
from typing import Any, TextIO

import structlog
from structlog.typing import Processor


def configure_logs(*, level: str, json: bool, stream: TextIO | None = None, worker: int | None = None) -> None:
    """Send every log line of the process to stdout or to `stream`, as JSON or for people; one of several says which."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso" if json else "%H:%M:%S", utc=json),
    ]
    if worker is not None:
        shared.append(partial(_add_worker, worker))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(json=json)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    logging.captureWarnings(capture=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # The gate writes a line for each request that deserves one.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    # Its start-up chatter repeats what `serve` prints; its errors matter.
    logging.getLogger("uvicorn.error").setLevel(max(number, logging.WARNING))


def _add_worker(worker: int, _: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What a line says about another worker, stands."""
    event.setdefault("worker", worker)
    return event


def _rendering(*, json: bool) -> list[Processor]:
    if json:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [
        _escape_controls,
        structlog.dev.ConsoleRenderer(
            colors=sys.stdout.isatty(),
            pad_event_to=18,
            sort_keys=False,
            # The one with local variables, which is chosen where rich is installed, would show credentials.
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def _escape_controls(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A value that came from outside can neither start a line of its own nor colour the terminal."""
    return {
        key: value if not isinstance(value, str) or value.isprintable() or key == "exception" else ascii(value)
        for key, value in event.items()
    }
