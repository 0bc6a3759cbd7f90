"""Trials: a version is loaded in a process of its own first, where a bomb, a hang or a crash costs nothing.

A trial finds out whether the version can be served, how much memory it takes, and which forms answer fastest; so the
processes that serve load it without doubts and without measuring. What was found out is kept by the digest of
everything that it depends on, in a folder that all processes of a machine share: there is one trial of each version.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Self

import structlog
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from app import __version__
from app.config import ModelSettings, bare_environment
from app.errors import Refusal, VersionRefused
from app.manifest import Manifest
from app.registry.files import replace_file
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from app.runtimes.politeness import is_polite

log = structlog.get_logger(__name__)

_FORMAT = 1
_LIBRARIES = ("scikit-learn", "numpy", "scipy", "joblib")
# Refusals that are kept: those of an artefact which was the one that its manifest describes. Whatever else is wrong may
# be wrong with this copy alone, or with settings and files beside it.
_KEPT = frozenset({"golden_mismatch", "unknown_code", "not_an_estimator", "outputs_mismatch", "load_failed"})
# What may come of a busy machine, and not of the version, is kept for a while only.
_PASSING_SECONDS = 600.0
_PASSING = frozenset({"trial_timeout", "trial_memory", "trial_crashed"})
# Where others want the CPUs, it rests.
_CLOCK_FOR_CPU = 3
_LEAVE_SECONDS = 2.0


class FormReport(BaseModel):
    """One form, as `app.runtimes.compile.Form` has it."""

    model_config = ConfigDict(frozen=True)

    form: str
    chosen_for: str = ""
    microseconds: dict[int, float] = {}
    largest_difference: float | None = None
    labels_equal: bool | None = None
    reason: str = ""


class Verdict(BaseModel):
    """What came of a trial: a refusal, or what there is to know. `memory_bytes` is what the process grew by."""

    model_config = ConfigDict(frozen=True)

    refusal: Refusal | None = None
    memory_bytes: int = 0
    seconds: float = 0.0
    plan: tuple[tuple[int, str], ...] = ()
    forms: tuple[FormReport, ...] = ()
    cost: tuple[tuple[int, float], ...] = ()


class Trials:
    """Asked from one thread at a time. Open it as a context manager: leaving ends what is being tried."""

    def __init__(self, settings: ModelSettings, trust: Trust) -> None:
        self._settings = settings
        self._trust = trust
        self._folder = settings.model_trials_dir
        self._known: dict[str, Verdict] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process that tries, also in the middle of a trial; from any thread."""
        self._closed = True
        self.rest()

    def rest(self) -> None:
        """End the process that tries; the next trial starts another."""
        with self._guard:
            process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def verdict(self, source: DirectorySource, manifest: Manifest) -> Verdict:
        """What is known of the version, or what a trial of it brings; the trial may take as long as settings allow."""
        key = self._key(manifest)
        if (known := self._known.get(key) or self._read(key)) is not None:
            return known
        with self._alone():
            found = self._read(key)
            if found is None:
                found = self._try(source, manifest)
                if found.refusal is None or found.refusal.reason in _KEPT | _PASSING:
                    self._write(key, found)
        if found.refusal is None:
            self._known[key] = found
        return found

    def _try(self, source: DirectorySource, manifest: Manifest) -> Verdict:
        log.info("trial_begins", model=manifest.name, version=manifest.version)
        started = time.perf_counter()
        order = {"root": str(source.root.absolute()), "name": manifest.name, "version": manifest.version}
        order["polite"] = is_polite()
        try:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 -- both are pipes
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            verdict = Verdict.model_validate_json(answer)
        except (OSError, ValueError):
            self.rest()
            if self._closed:
                raise VersionRefused("stopping", "the service stops") from None
            verdict = Verdict(refusal=Refusal("trial_crashed", "the process that tries versions has ended"))
        seconds = round(time.perf_counter() - started, 2)
        outcome = verdict.refusal.reason if verdict.refusal else "good"
        log.info("trial_ended", model=manifest.name, version=manifest.version, outcome=outcome, seconds=seconds)
        return verdict

    def _running(self) -> subprocess.Popen[bytes]:
        with self._guard:
            if self._closed:
                raise VersionRefused("stopping", "the service stops")
            if self._process is None or self._process.poll() is not None:
                self._process = start_scout(self._settings, self._trust)
            return self._process

    def _key(self, manifest: Manifest) -> str:
        """Of all that may change the outcome. The manifest has the artefact's digest."""
        settings = self._settings.model_dump(mode="json", exclude={"models_dir", "default_model", "required_models"})
        libraries = {name: installed(name) for name in _LIBRARIES}
        facts = [_FORMAT, __version__, platform.python_version(), platform.machine(), libraries, settings]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode() + manifest.to_json()).hexdigest()

    def _read(self, key: str) -> Verdict | None:
        path = self._folder / f"{key}.json"
        try:
            verdict = Verdict.model_validate_json(path.read_bytes())
            age = time.time() - path.stat().st_mtime
        except (OSError, ValidationError):
            return None
        passes = verdict.refusal is not None and verdict.refusal.reason in _PASSING
        return None if passes and age > _PASSING_SECONDS else verdict

    def _write(self, key: str, verdict: Verdict) -> None:
        try:
            replace_file(self._folder / f"{key}.json", verdict.model_dump_json(indent=2).encode() + b"\n")
        except OSError as error:
            log.warning("trial_not_kept", folder=str(self._folder), reason=error.strerror)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process tries anything meanwhile: the second finds what the first has found out."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder, os.O_RDONLY)
        except OSError:  # then each process has its own trials
            yield
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def start_scout(settings: ModelSettings, trust: Trust) -> subprocess.Popen[bytes]:
    """The process that tries versions: it has no settings but these, no secrets, and the import path of this one.

    Raises OSError.
    """
    path = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
    return subprocess.Popen(  # noqa: S603 -- our own code, and no shell
        [
            sys.executable,
            "-m",
            "app.registry.scout",
            settings.model_dump_json(),
            dump_trust(trust),
            str(_CLOCK_FOR_CPU),
        ],
        env={**bare_environment(), "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


_trust: TypeAdapter[Trust] = TypeAdapter(Trust)


def dump_trust(trust: Trust) -> str:
    """As the scout reads it."""
    return _trust.dump_json(trust).decode()


def load_trust(dumped: str) -> Trust:
    """What `dump_trust` has written."""
    return _trust.validate_json(dumped)


def as_report(form: Any) -> FormReport:
    """A form of `app.runtimes.compile` as it is kept."""
    return FormReport(**asdict(form))
