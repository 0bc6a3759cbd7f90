"""`models promote`, `models rollback` and `models history`: which version is the champion, and why."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from app.cli.models.opened import operator, releases, tell
from app.cli.tables import print_table
from app.errors import PromotionRefused
from app.release.changes import ACTIONS, PROMOTE, PUBLISH, ROLLBACK
from app.release.evidence import Evidence, Limits
from app.storage import audit
from app.storage.audit import Entry

_Command = TypeVar("_Command", bound=Callable[..., Any])

_SAID = {True: "passed", False: "FAILED", None: "unknown"}
_DEFAULT = Limits()


def _limit(name: str, kind: click.ParamType[Any]) -> Callable[[_Command], _Command]:
    """An option for one of the limits, described as the limit is."""
    described = Limits.model_fields[name].description
    return click.option(
        f"--{name.replace('_', '-')}", type=kind, default=getattr(_DEFAULT, name), show_default=True, help=described
    )


@click.command()
@click.argument("name")
@click.argument("version")
@click.option("--force", is_flag=True, help="Promote it whatever the evidence says; this goes on record.")
@click.option("--reason", default="", help="Why; required with --force.")
@_limit("rows", click.IntRange(0, 10_000))
@_limit("seconds", click.FloatRange(0, 600, min_open=True))
@_limit("least_equal", click.FloatRange(0, 1))
@_limit("most_shift", click.FloatRange(0))
@_limit("most_latency_ratio", click.FloatRange(0, min_open=True))
@_limit("most_broken", click.IntRange(0))
@_limit("least_pairs", click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="The evidence with all its figures, as JSON.")
def promote(*, name: str, version: str, force: bool, reason: str, as_json: bool, **limits: Any) -> None:
    """Make VERSION, a number or an alias, the champion of the model NAME, if the evidence allows it.

    It is compared with the champion: what it takes and answers, on what was logged, how long it takes, and how often it
    is right where there is feedback. Exit code 1 when it is refused.
    """
    if force and not reason.strip():
        raise click.UsageError("--force needs a --reason")
    with releases() as opened:
        try:
            made = opened.promote(name, version, by=operator(), limits=Limits(**limits), force=force, reason=reason)
        except PromotionRefused as error:
            _show(Evidence.model_validate(error.members["evidence"]), as_json=as_json)
            raise
        if made.evidence is not None:
            _show(made.evidence, as_json=as_json)
        tell(made)


@click.command()
@click.argument("name")
@click.option(
    "--from",
    "leaving",
    type=click.IntRange(1),
    metavar="VERSION",
    help="The version to leave: if another is the champion already, nothing changes, however often this is repeated.",
)
def rollback(*, name: str, leaving: int | None) -> None:
    """Make the previous champion of the model NAME the champion again, at once, also while the database is away."""
    with releases() as opened:
        tell(opened.rollback(name, by=operator(), leaving=leaving))


@click.command()
@click.argument("name")
@click.option("--size", type=click.IntRange(1, 500), default=20, show_default=True, help="How many changes.")
@click.option("--json", "as_json", is_flag=True, help="With the evidence and all documents, as JSON lines.")
def history(*, name: str, size: int, as_json: bool) -> None:
    """Show who changed what is served of the model NAME, newest first."""
    with releases() as opened:
        found = opened.history(name, size)
    if as_json:
        for entry in found:
            click.echo(json.dumps(audit.document(entry)))
    elif not found:
        click.echo(f"presage: nothing on record of {name}", err=True)
    else:
        head = ("TIME", "WHO", "ACTION", "CHANGE", "WHY")
        rows = [(_instant(entry), entry.principal, _action(entry), _change(entry), _why(entry)) for entry in found]
        print_table(head, rows)


def _show(evidence: Evidence, *, as_json: bool) -> None:
    if as_json:
        click.echo(evidence.model_dump_json(indent=2))
        return
    rows = [(check.check, _SAID[check.passed], check.detail) for check in evidence.checks]
    print_table(("CHECK", "RESULT", "DETAIL"), rows)


def _instant(entry: Entry) -> str:
    return f"{entry.at:%Y-%m-%dT%H:%M:%SZ}"


def _action(entry: Entry) -> str:
    return entry.action.removeprefix("model.") if entry.action in ACTIONS else entry.action


def _change(entry: Entry) -> str:
    """The names that stand for another version, or the rules that are others."""
    before, after = entry.before or {}, entry.after or {}
    changed = [f"version {after['version']}"] if entry.action == PUBLISH else []
    for part in ("aliases", "traffic"):
        was, now = before.get(part) or {}, after.get(part) or {}
        if part == "aliases" and entry.action in (PROMOTE, ROLLBACK):
            was, now = ({"champion": document.get("champion")} for document in (was, now))
        changed += [
            f"{key} {_said(was.get(key))} → {_said(now.get(key))}"
            for key in sorted(was.keys() | now.keys())
            if was.get(key) != now.get(key)
        ]
    return ", ".join(changed)


def _said(value: Any) -> str:
    return "none" if value is None else str(value)


def _why(entry: Entry) -> str:
    after = entry.after or {}
    forced = "by force: " if after.get("forced") else ""
    return " ".join(f"{forced}{after.get('reason') or ''}".split())
