"""`clients`: who may call. A secret is printed once, alone on standard output, so that it can be piped to its place."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import click

from app.auth.clients import Changes, Clients
from app.auth.principal import LEAST
from app.auth.tokens import InvalidToken, read_unverified
from app.cli.tables import print_table
from app.config import read_settings
from app.errors import OperatorError, PresageError
from app.storage.clients import ApiKey, Client, Kind
from app.storage.database import Database
from app.telemetry.logs import configure_logs

_OPERATOR = "operator"
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}
# The longest that a token made here can be valid.
_LONGEST_TOKEN = timedelta(days=30)
_JWT_DOTS = 2


class _Duration(click.ParamType[timedelta]):
    """Such as 90d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"([1-9][0-9]{0,4})([dhm])", str(value))
        if match is None:
            self.fail("write a duration as 90d, 12h or 30m", param, ctx)
        return timedelta(**{_UNITS[match[2]]: int(match[1])})


@click.group()
def clients() -> None:
    """Who may call: clients, their secrets and API keys, and tokens that are refused before they expire."""
    settings = read_settings()
    # Standard output belongs to secrets and lists.
    configure_logs(level=settings.server.log_level, json=settings.json_logs, stream=sys.stderr)


_scopes = click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help="What is permitted; may be repeated.")
_generate = click.option("--generate", is_flag=True, help="Make a user's password instead of asking for it.")
_format = click.option("--format", "kind", type=click.Choice(("table", "json")), default="table", show_default=True)


@clients.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(get_args(Kind)), default="service", show_default=True)
@_scopes
@click.option("--plan", help="A rate of its own, such as 600/minute.")
@_generate
def add(*, name: str, kind: Kind, scopes: Sequence[str], plan: str | None, generate: bool) -> None:
    """Register a client, and print its secret. A user's password is asked for."""
    with _clients() as opened:
        given = _password(kind, generate=generate)
        secret = opened.add(name, by=_OPERATOR, kind=kind, scopes=scopes or LEAST, plan=plan, secret=given)
    _tell(f"{name} is registered")
    _show_secret(secret, given)


@clients.command("list")
@_format
def list_(*, kind: str) -> None:
    """Show all clients."""
    with _clients() as opened:
        found = opened.list()
    _show(kind, [_client(client) for client in found], "no clients are registered")


@clients.command()
@click.argument("name")
def disable(*, name: str) -> None:
    """Refuse a client with its keys and tokens, until it is enabled."""
    with _clients() as opened:
        opened.disable(name, by=_OPERATOR)
    _tell(f"{name} is disabled")


@clients.command()
@click.argument("name")
def enable(*, name: str) -> None:
    """Take a client back; its tokens from before stay refused."""
    with _clients() as opened:
        opened.enable(name, by=_OPERATOR)
    _tell(f"{name} is enabled")


@clients.command()
@click.argument("name")
@click.option("--revoke-tokens", is_flag=True, help="Refuse the tokens that it has, too.")
@_generate
def rotate(*, name: str, revoke_tokens: bool, generate: bool) -> None:
    """Give a client another secret, and print it. A user's password is asked for."""
    with _clients() as opened:
        given = _password(opened.get(name).kind, generate=generate)
        secret = opened.rotate(name, by=_OPERATOR, revoke_tokens=revoke_tokens, secret=given)
    _tell(f"{name} has another secret" + (", and no valid tokens" if revoke_tokens else ""))
    _show_secret(secret, given)


@clients.command()
@click.argument("name")
@_scopes
@click.option("--plan", help="A rate of its own, such as 600/minute.")
@click.option("--no-plan", is_flag=True, help="No rate of its own: RATE_LIMIT.")
def change(*, name: str, scopes: Sequence[str], plan: str | None, no_plan: bool) -> None:
    """Give a client other scopes, all of which are named, or another plan."""
    if plan is not None and no_plan:
        raise click.UsageError("--plan and --no-plan exclude each other")
    changes: Changes = {}
    if scopes:
        changes["scopes"] = scopes
    if plan is not None or no_plan:
        changes["plan"] = plan
    if not changes:
        raise click.UsageError("name what to change: --scope, --plan or --no-plan")
    with _clients() as opened:
        changed = opened.change(name, by=_OPERATOR, **changes)
    _tell(f"{name} may {', '.join(sorted(changed.scopes))}; its plan: {changed.plan or 'none of its own'}")


@clients.command()
@click.argument("name")
@click.option("--expires", type=_Duration(), help="How long it is valid, such as 90d; for ever unless said.")
@click.option("--note", default="", help="What it is for.")
def key(*, name: str, expires: timedelta | None, note: str) -> None:
    """Make an API key for a client, and print it."""
    expires_at = None if expires is None else datetime.now(UTC) + expires
    with _clients() as opened:
        made = opened.add_key(name, by=_OPERATOR, expires_at=expires_at, note=note)
    _tell(f"a key of {name}, shown only now; it is valid until {_instant(expires_at) or 'it is revoked'}")
    click.echo(made)


@clients.command()
@click.argument("name")
@_format
def keys(*, name: str, kind: str) -> None:
    """Show the API keys of a client; the keys themselves are not known."""
    with _clients() as opened:
        found = opened.keys(name)
    _show(kind, [_key(one) for one in found], f"{name} has no keys")


@clients.command("revoke-key")
@click.argument("identifier", metavar="ID")
def revoke_key(*, identifier: str) -> None:
    """Refuse the API key of that ID, the middle part of the key, from now on."""
    with _clients() as opened:
        opened.revoke_key(identifier, by=_OPERATOR)
    _tell("the key is revoked")


@clients.command("revoke-token")
@click.argument("token", metavar="TOKEN_OR_JTI")
@click.option("--expires", type=_Duration(), help="How long a token named by its jti may still be valid; 30d.")
def revoke_token(*, token: str, expires: timedelta | None) -> None:
    """Refuse a token before it expires; its `jti` is enough."""
    jti, expires_at = _token(token)
    if expires is not None:
        expires_at = datetime.now(UTC) + expires
    with _clients() as opened:
        opened.revoke_token(jti, expires_at, by=_OPERATOR)
    _tell(f"the token is refused, on record until {_instant(expires_at)}")


@contextmanager
def _clients() -> Iterator[Clients]:
    """The operations, on a database that has the tables; what they refuse is a message for the person who asked."""
    with Database(read_settings().storage) as database:
        state = database.schema_state()
        if state in ("absent", "behind"):
            raise OperatorError("the database lacks the tables of this release: run `python -m app migrate`")
        if state == "unreachable":
            raise OperatorError("the database at DATABASE_URL does not answer")
        try:
            yield Clients(database)
        except PresageError as error:
            wrong = [f"{one.field} {one.detail}" for one in error.errors]
            raise OperatorError("; ".join(wrong) or error.detail) from None


def _password(kind: Kind, *, generate: bool) -> str | None:
    """What a user has chosen; never from an argument, since everybody on the machine can read those."""
    if kind == "service" or generate:
        return None
    entered: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return entered


def _token(text: str) -> tuple[str, datetime]:
    """The id and the end of a token, or of one of which only the id is known."""
    if text.count(".") != _JWT_DOTS:
        return text, datetime.now(UTC) + _LONGEST_TOKEN
    try:
        jti, expires = read_unverified(text)
        return jti, datetime.fromtimestamp(expires, UTC)
    except (InvalidToken, ValueError, OverflowError, OSError):
        raise OperatorError("that is neither a token nor its jti") from None


def _tell(what: str) -> None:
    click.echo(f"presage: {what}", err=True)


def _show_secret(secret: str, given: str | None) -> None:
    if given is None:
        _tell("its secret, shown only now:")
        click.echo(secret)


def _client(client: Client) -> dict[str, Any]:
    return {
        "name": client.name,
        "kind": client.kind,
        "scopes": sorted(client.scopes),
        "plan": client.plan,
        "created": _instant(client.created_at),
        "disabled": _instant(client.disabled_at),
    }


def _key(one: ApiKey) -> dict[str, Any]:
    return {
        "id": one.id,
        "note": one.note,
        "created": _instant(one.created_at),
        "expires": _instant(one.expires_at),
        "revoked": _instant(one.revoked_at),
    }


def _instant(at: datetime | None) -> str | None:
    return None if at is None else f"{at:%Y-%m-%dT%H:%M:%SZ}"


def _show(kind: str, rows: Sequence[dict[str, Any]], nothing: str) -> None:
    if kind == "json":
        click.echo(json.dumps(rows, indent=2))
    elif not rows:
        _tell(nothing)
    else:
        print_table([name.upper() for name in rows[0]], [[_cell(value) for value in row.values()] for row in rows])


def _cell(value: Any) -> Any:
    return " ".join(value) if isinstance(value, list) else value
