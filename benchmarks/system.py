"""The form in which a server is described: how it is started, asked and read."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Task = Literal["text", "row"]


@dataclass(frozen=True)
class Place:
    """What a server is started with: an interpreter, a model, a port, and a folder of its own."""

    python: Path
    models: Path
    artefact: Path
    port: int
    folder: Path


@dataclass(frozen=True)
class System:
    """A server for a task. `body` makes a request's JSON of an item, `answer` finds the label in the answer's.

    `environment` is the name of its list of versions in `peers/`; None is the service's own environment.
    """

    name: str
    task: Task
    path: str
    body: Callable[[Any], Any]
    answer: Callable[[Any], Any]
    command: Callable[[Place], Sequence[str]]
    variables: Callable[[Place], Mapping[str, str]]
    version: str
    settings: str
    environment: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def content(self, item: Any) -> bytes:
        """The bytes of a request's body."""
        return json.dumps(self.body(item)).encode()
