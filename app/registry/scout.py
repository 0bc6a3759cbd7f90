"""Scout: the process in which versions are tried. It imports once, and forks a child for each trial.

It reads orders from its input, a JSON object a line, and writes a verdict for each; its input ends when it should. The
child has limits of time and memory; whatever becomes of it, the scout lives, and says how the child has ended.
"""

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from app.config import ModelSettings
from app.errors import Refusal, VersionRefused
from app.machine import cpu_seconds, limit_process, only_idle_cpus, used_bytes
from app.registry.sources import DirectorySource
from app.registry.trials import Verdict, as_report, load_trust
from app.registry.trust import Trust

# Behind everybody who serves, and yet not so far that a busy machine keeps it from ever coming to an end.
_NICENESS = 10
# Files that a library may want to write; a version has no business with large ones.
_FILE_BYTES = 64 << 20
_READ_BYTES = 1 << 16
_MESSAGE_BYTES = 8 << 20

# In so many seconds a child that may only use idle CPUs should have had this share of one, or there are none.
_PATIENCE_SECONDS = 15.0
_LEAST_SHARE = 0.05
_STARVED = Verdict(refusal=Refusal("trial_timeout", "the machine had no time for it"))


class _Stopped(Exception):
    """Nobody waits for the verdict any more."""


def main() -> None:
    """Until the input ends."""
    settings = ModelSettings.model_validate_json(sys.argv[1])
    trust = load_trust(sys.argv[2])
    clock_for_cpu = int(sys.argv[3])
    os.nice(_NICENESS)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print is no verdict
    from app.machine import start_numeric_threads  # noqa: PLC0415 -- before numpy, as the next

    start_numeric_threads(1)
    import app.registry.loader  # noqa: F401, PLC0415 -- once, for all children

    pending = b""
    while block := os.read(0, _READ_BYTES):
        *orders, pending = (pending + block).split(b"\n")
        for order in orders:
            with contextlib.suppress(_Stopped, BrokenPipeError):
                out.write(_try(json.loads(order), settings, trust, clock_for_cpu).model_dump_json().encode() + b"\n")


def _try(order: dict[str, Any], settings: ModelSettings, trust: Trust, clock_for_cpu: int) -> Verdict:
    """With the time of the CPUs that nobody else wants; where there is none, with a small share of what there is."""
    verdict = _attempt(order, settings, trust, clock_for_cpu, idle=True)
    return verdict or _attempt(order, settings, trust, clock_for_cpu, idle=False) or _STARVED


def _attempt(
    order: dict[str, Any], settings: ModelSettings, trust: Trust, clock_for_cpu: int, *, idle: bool
) -> Verdict | None:
    """Fork a child, and wait for what it says, or for how it ends. None when it was left without CPU time."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        if idle:
            only_idle_cpus()
        _be_tried(order, settings, trust, theirs)
    os.close(theirs)
    with contextlib.suppress(OSError):  # the child does so, too: whoever is first
        os.setpgid(child, child)
    limit = settings.model_trial_seconds * clock_for_cpu
    began = time.monotonic()
    try:
        said = None
        if idle and limit > _PATIENCE_SECONDS:
            said = _heard_soon(ours, began + _PATIENCE_SECONDS)
            if said is None and cpu_seconds(child) < _LEAST_SHARE * _PATIENCE_SECONDS:
                return None
        said = said or _listen(ours, began + limit)
    except TimeoutError:
        return Verdict(refusal=Refusal("trial_timeout", f"it was not loaded within {limit} s"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.close(ours)
        _, status = os.waitpid(child, 0)
    if said.endswith(b"\n"):
        return Verdict.model_validate_json(said)
    return Verdict(refusal=_how_it_ended(status, settings))


def _heard_soon(pipe: int, deadline: float) -> bytes | None:
    try:
        return _listen(pipe, deadline)
    except TimeoutError:
        return None


def _listen(pipe: int, deadline: float) -> bytes:
    """All that the child says. Raises TimeoutError, and _Stopped when our own input ends."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    poll.register(0, 0)  # only that it was hung up
    said = b""
    while not said.endswith(b"\n"):
        left = deadline - time.monotonic()
        events = dict(poll.poll(max(0.0, left) * 1000))
        if 0 in events:
            raise _Stopped
        if not events:
            raise TimeoutError
        block = os.read(pipe, _READ_BYTES)
        if not block or len(said) > _MESSAGE_BYTES:
            break
        said += block
    return said


def _be_tried(order: dict[str, Any], settings: ModelSettings, trust: Trust, out: int) -> NoReturn:
    """In the child."""
    try:
        os.setpgid(0, 0)
        _limit(settings)
        verdict = _verdict(order, settings, trust)
        os.write(out, verdict.model_dump_json().encode() + b"\n")
    finally:
        os._exit(1)


def _limit(settings: ModelSettings) -> None:
    limit_process(more_bytes=settings.max_bytes, cpu_seconds=settings.model_trial_seconds, file_bytes=_FILE_BYTES)


def _verdict(order: dict[str, Any], settings: ModelSettings, trust: Trust) -> Verdict:
    from app.registry.loader import load_version  # noqa: PLC0415 -- imported by now
    from app.runtimes.compile import Compiling  # noqa: PLC0415
    from app.runtimes.politeness import politely  # noqa: PLC0415

    source, before, started = DirectorySource(Path(order["root"])), used_bytes(1), time.perf_counter()
    compiling = Compiling() if settings.compile == "auto" else None
    try:
        with politely(apart=True) if order["polite"] else contextlib.nullcontext():
            model = load_version(source, order["name"], order["version"], trust, compiling)
    except Exception as error:  # noqa: BLE001 -- whatever a version does, it is its refusal
        return Verdict(refusal=_refusal(error, settings))
    return Verdict(
        memory_bytes=max(used_bytes(1) - before, model.manifest.artefact.size),
        seconds=time.perf_counter() - started,
        plan=model.plan,
        forms=tuple(as_report(form) for form in model.forms),
        cost=model.cost.points,
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it came of, one after the other."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _how_it_ended(status: int, settings: ModelSettings) -> Refusal:
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        return Refusal("trial_timeout", f"loading it took more than {settings.model_trial_seconds} s of CPU time")
    how = f"{signal.Signals(-code).name}" if code < 0 else f"the exit code {code}"
    return Refusal("trial_crashed", f"loading it ended the process with {how}")


def _refusal(error: BaseException, settings: ModelSettings) -> Refusal:
    if any(isinstance(each, MemoryError) for each in _chain(error)):
        most = settings.max_bytes >> 20
        return Refusal("trial_memory", f"loading it takes more than {most} MiB (MODELS_MAX_BYTES)")
    return error.refusal if isinstance(error, VersionRefused) else Refusal("load_failed", type(error).__name__)


if __name__ == "__main__":
    main()
