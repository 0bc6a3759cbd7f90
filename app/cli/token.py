"""`token`: a token for somebody, from whoever has the keys anyway."""

import re
import time
from datetime import timedelta
from typing import Any

import click

from app.auth.keys import KeyRing
from app.auth.principal import LEAST, is_scope
from app.auth.tokens import issue
from app.config import read_settings
from app.errors import OperatorError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST = timedelta(days=366)


class Duration(click.ParamType[timedelta]):
    """A number and its unit: `90s`, `15m`, `1h`, `30d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """What was written, as a length of time."""
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"([1-9]\d{0,8})([smhd])", value)
        found = timedelta(seconds=int(match[1]) * _UNITS[match[2]]) if match else None
        if found is None or found > _LONGEST:
            self.fail("write a number and a unit, such as 15m, 1h or 30d, of a year at most", param, ctx)
        return found


@click.command()
@click.option("--subject", required=True, help="Who the token is for; predictions are on record under that name.")
@click.option("--scope", "scopes", multiple=True, help="May come several times.  [default: predict]")
@click.option("--expires", type=Duration(), default="1h", show_default=True, help="How long it is valid.")
def token(subject: str, scopes: tuple[str, ...], expires: timedelta) -> None:
    """Print a token, signed with the service's own key."""
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", subject):
        raise click.BadParameter("must be up to 255 printable characters without spaces", param_hint="--subject")
    unknown = [scope for scope in scopes if not is_scope(scope)]
    if unknown:
        raise click.BadParameter("must be predict, predict:MODEL, feedback, read or admin", param_hint="--scope")
    settings = read_settings()
    ring = KeyRing(settings.auth, production=settings.place.production)
    key = ring.signing_key()
    if key is None:
        raise OperatorError("no key here can sign; tokens come from the issuer at JWKS_URL")
    seconds = int(expires.total_seconds())
    click.echo(issue(key, subject, frozenset(scopes or LEAST), now=time.time(), seconds=seconds))
