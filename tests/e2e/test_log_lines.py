"""The log is one JSON object a line, whatever callers put into what is logged."""

import json

import pytest

from tests.support.raw import send_raw
from tests.support.server import Server

FORGED = '{"event": "forged", "level": "error"}'
TARGETS = {
    "a line break": "/a%0a%0d" + FORGED.replace('"', "%22").replace(" ", "%20"),
    "quotes": '/a"b\\c',
    "a terminal's orders": "/%1b%5b31mred%1b%5b0m%07",
    "a zero byte": "/a%00b",
    "no UTF-8": "/%ff%fe",
    "a long path": "/" + "a" * 8_000,
    "other letters": "/é€".encode().decode("latin-1"),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_hostile_path_is_one_line_of_bounded_length(server: Server, target: str) -> None:
    """Escaped, cut short, and under the id that we gave it."""
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: {FORGED}\r\nUser-Agent: {FORGED}\r\n\r\n"
    answer = send_raw(server.port, request.encode("latin-1"))
    identifier = answer.headers["x-request-id"]
    lines = [line for line in server.output().splitlines() if identifier in line] or [
        json.dumps(server.wait_for_event("http_request", request_id=identifier))
    ]
    (line,) = lines
    assert json.loads(line)["event"] in {"http_request", "request_refused"}
    assert len(line) < 1_000
    assert line.isascii()
    assert line.isprintable()
    assert "forged" not in [json.loads(each)["event"] for each in server.output().splitlines()]
