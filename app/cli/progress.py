"""How far along a walk over the log is, in time between the first prediction and the last: nothing is counted."""

import time
from typing import Any

import click

from app.storage.ids import milliseconds_of
from app.storage.queries import LoggedPrediction

_BAR_WIDTH = 30
_PROGRESS_SECONDS = 0.2


class Progress:
    """A bar on standard error; without a span there is none."""

    def __init__(self, span: tuple[Any, Any] | None) -> None:
        self._shown = span is not None
        self._first, self._last = (milliseconds_of(identifier) for identifier in span) if span else (0, 0)
        self._rows = 0
        self._next = time.monotonic()

    def advance(self, prediction: LoggedPrediction) -> None:
        """One more was done."""
        self._rows += 1
        if self._shown and self._rows % 256 == 0 and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_SECONDS
            length = max(1, self._last - self._first)
            self._show(min(1.0, (milliseconds_of(prediction.id) - self._first) / length))

    def finish(self) -> None:
        """All were."""
        if self._shown:
            self._show(1.0)
            click.echo(err=True)

    def _show(self, share: float) -> None:
        done = round(share * _BAR_WIDTH)
        bar = "#" * done + "-" * (_BAR_WIDTH - done)
        click.echo(f"\r[{bar}] {share:4.0%}  {self._rows:,} predictions", err=True, nl=False)
