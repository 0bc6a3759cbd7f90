"""Framing: what llhttp lets through in a request's head, and another parser could read in another way.

A proxy in front and this service must agree where a request ends and whom it is for; where they could differ, the
request is refused. Lines without CR, folded lines, control characters, blanks before colons, wrong or second lengths
and wrong chunk sizes are refused by llhttp itself.
"""

from app.errors import MalformedRequest

# The headers that `check_framing` wants to see; in lower case.
FRAMING = frozenset({b"host", b"transfer-encoding"})
_HOST_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:[]"


def check_framing(version: str, framing: list[tuple[bytes, bytes]]) -> None:
    """Raises MalformedRequest unless there is one way to read a head with these headers of the names in FRAMING."""
    if version not in {"1.1", "1.0"}:
        raise MalformedRequest("only HTTP/1.1 and HTTP/1.0 are spoken here")
    codings = [value.lower() for name, value in framing if name == b"transfer-encoding"]
    if codings and (codings != [b"chunked"] or version == "1.0"):
        raise MalformedRequest("the only transfer coding is chunked, once, and in HTTP/1.1")
    hosts = [value for name, value in framing if name == b"host"]
    if len(hosts) != 1 and (hosts or version == "1.1"):
        raise MalformedRequest("a request has one Host header")
    if hosts and hosts[0].translate(None, _HOST_BYTES):
        raise MalformedRequest("the Host header is no host")


def check_target(method: bytes, target: bytes) -> None:
    """Raises MalformedRequest unless the target is a path, of which no part can be taken for a host.

    Only OPTIONS may be asked of the server as a whole, and a fragment never belongs on the wire.
    """
    if method == b"OPTIONS" and target == b"*":
        return
    if not target.startswith(b"/") or b"#" in target:
        raise MalformedRequest("the request's target must be a path, without a fragment")


def refuse_tunnel(method: bytes) -> None:
    """Raises MalformedRequest for a method that makes a connection something other than HTTP."""
    if method == b"CONNECT":
        raise MalformedRequest("this is no proxy")
