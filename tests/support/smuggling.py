"""Requests that can be read in two ways, each with what a smuggler wants to be taken for a request of its own."""

from tests.support.raw import chunked

TEXT = b'{"text": "I love this product"}'
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"

_HOST = b"Host: localhost"
_CHUNKED = b"Transfer-Encoding: chunked"


def get(*headers: bytes, target: bytes = b"/health/live", version: bytes = b"1.1") -> bytes:
    """A GET with these headers and no others."""
    return b"GET %s HTTP/%s\r\n" % (target, version) + b"".join(header + b"\r\n" for header in headers) + b"\r\n"


def post_text(*headers: bytes, body: bytes = b"") -> bytes:
    """A POST that says in these headers how long it is."""
    lines = [b"POST /predict HTTP/1.1", _HOST, b"Content-Type: application/json", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


_CODINGS = (
    *(b"xchunked", b"gzip, chunked", b"chunked, gzip", b"identity", b"", b",chunked", b"chunked,", b"chunked;q=1"),
    *(b'"chunked"', b"\x0bchunked", b"chunked, chunked", b"chunked\t\x0c"),
)
_CHUNKS = (
    *(b"g\r\n", b"-1\r\n", b"\r\n", b"0x5\r\nabcde\r\n0\r\n\r\n", b"5 \r\nabcde\r\n0\r\n\r\n", b"0\r\n\n"),
    *(b"5\nabcde\r\n0\r\n\r\n", b"5\r\nabcdef\r\n0\r\n\r\n", b"5\r\nabcde0\r\n\r\n", b"5\r\nabcde\n0\r\n\r\n"),
    *(b"fffffffffffffffff\r\n", b"5;a=b\nc\r\nabcde\r\n0\r\n\r\n", b"0\r\nX: a\r\n b\r\n\r\n"),
    *(b"0\r\nContent-Length: 5\r\n\r\n", b"5\r\r\nabcde\r\n0\r\n\r\n"),
)

AMBIGUOUS = {
    "length and coding": post_text(b"Content-Length: 5", _CHUNKED, body=b"0\r\n\r\n" + HIDDEN),
    "coding and length": post_text(_CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n" + HIDDEN),
    "two lengths": post_text(b"Content-Length: 0", b"Content-Length: 43", body=HIDDEN),
    "the same length twice": post_text(b"Content-Length: 31", b"Content-Length: 31", body=TEXT + HIDDEN),
    "a list of lengths": post_text(b"Content-Length: 31, 31", body=TEXT + HIDDEN),
    "a signed length": post_text(b"Content-Length: +31", body=TEXT + HIDDEN),
    "a negative length": post_text(b"Content-Length: -1", body=HIDDEN),
    "a hexadecimal length": post_text(b"Content-Length: 0x1f", body=TEXT + HIDDEN),
    "a length of 23 digits": post_text(b"Content-Length: 99999999999999999999999", body=TEXT),
    "an empty length": post_text(b"Content-Length: ", body=HIDDEN),
    **{
        f"coding {coding.decode('latin-1')!r}": post_text(b"Transfer-Encoding: " + coding, body=chunked(TEXT) + HIDDEN)
        for coding in _CODINGS
    },
    "two codings": post_text(_CHUNKED, _CHUNKED, body=chunked(TEXT) + HIDDEN),
    "a coding in HTTP/1.0": post_text(_CHUNKED, body=chunked(TEXT) + HIDDEN).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "a folded header": get(_HOST, b"X: a\r\n b"),
    "a folded header with a tab": get(_HOST, b"X: a\r\n\tb"),
    "a folded first header": get(b" X: a", _HOST),
    "a folded coding": post_text(b"Transfer-Encoding:\r\n chunked", body=chunked(TEXT) + HIDDEN),
    "bare LF everywhere": get(_HOST).replace(b"\r\n", b"\n"),
    "bare LF after the first line": get(_HOST).replace(b"\r\n", b"\n", 1),
    "bare LF after a header": get(_HOST + b"\nX: a"),
    "bare LF at the end": get(_HOST)[:-2] + b"\n",
    "bare CR in a header": get(_HOST, b"X: a\rY: b"),
    "NUL in a value": get(_HOST, b"X: a\x00b"),
    "control in a value": get(_HOST, b"X: a\x01b"),
    "DEL in a value": get(_HOST, b"X: a\x7fb"),
    "NUL in a name": get(_HOST, b"X\x00: a"),
    "blank before the colon": post_text(b"Content-Length : 31", body=TEXT + HIDDEN),
    "tab before the colon": post_text(b"Transfer-Encoding\t: chunked", body=chunked(TEXT) + HIDDEN),
    "no colon": get(_HOST, b"X"),
    "no name": get(_HOST, b": a"),
    "no token for a name": get(_HOST, b"X(: a"),
    "two hosts": get(_HOST, b"Host: evil"),
    "no host": get(b"X: a"),
    "a host that is none": get(b"Host: evil/path"),
    "a host with a user": get(b"Host: a@evil"),
    "an absolute target": get(_HOST, target=b"http://evil/health/live"),
    "an authority for a target": get(_HOST, target=b"evil:80"),
    "an asterisk": get(_HOST, target=b"*"),
    "a fragment": get(_HOST, target=b"/health/live#x"),
    "no slash": get(_HOST, target=b"health/live"),
    "a letter beyond ASCII": get(_HOST, target=b"/health/live\xe9"),
    "a tunnel": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n" + HIDDEN,
    "a tunnel to a path": b"CONNECT /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n" + HIDDEN,
    "HTTP/0.9": get(_HOST, version=b"0.9"),
    "HTTP/2.0": get(_HOST, b"Connection: keep-alive", version=b"2.0"),
    "HTTP/2 itself": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    **{f"chunk {body[:12]!r}": post_text(_CHUNKED, body=body + HIDDEN) for body in _CHUNKS},
}
