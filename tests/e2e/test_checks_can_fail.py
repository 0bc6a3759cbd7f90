"""The checks of hostile traffic fail where they should: put to a service that was written without a thought of it."""

import http.cookies
import mmap
import os
import time
from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support import checks
from tests.support.naive import running_naive
from tests.support.outside import Target, flat_memory, get, predict
from tests.support.tokens import token

# What each check finds; another failure would be an accident.
FINDINGS: dict[Callable[[Target], None], str] = {
    checks.a_hostile_cookie_holds_nobody_up: "held up for",
    checks.headers_have_a_bound: "bytes of headers were answered 200",
    checks.a_url_has_a_bound: "a megabyte of URL was answered 400",
    checks.a_body_without_a_credential_is_not_read: "a body from nobody was answered 422",
    checks.numbers_are_finite: "NaN was answered 200",
    checks.the_token_has_no_say_in_its_algorithm: "signed with the public key in PEM as rsa: 500",
    checks.the_token_has_no_say_in_its_key: "an unknown key: 200",
    checks.claims_are_required: "no expiry: 200",
    checks.a_token_has_one_spelling: "junk behind: 200",
    checks.a_prediction_belongs_to_who_asked: "somebody else's prediction was answered 200",
    checks.administration_is_for_administrators: "the list of clients was answered 200",
    checks.errors_repeat_nothing: "was repeated",
    checks.every_answer_has_security_headers: "200 may be sniffed",
    checks.pages_of_others_may_not_call: "was told",
    checks.scans_make_no_series: "series were added",
}


@pytest.fixture(scope="module")
def naive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The naive service, running."""
    public = rsa.generate_private_key(65537, 2048).public_key()
    public_key = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with running_naive(public_key, tmp_path_factory.mktemp("naive") / "log") as target:
        yield target


def test_every_check_is_tried() -> None:
    """None is left out, so none can be written that always passes."""
    assert set(checks.ALL) == FINDINGS.keys()


def test_the_naive_service_serves(naive: Target) -> None:
    """It is no strawman: who behaves gets answers from it."""
    assert get(naive, "/health/live").status == 200
    assert get(naive, "/admin/clients").status == 401
    assert predict(naive, token()).status == 200


@pytest.mark.parametrize("check", FINDINGS, ids=lambda check: check.__name__)
def test_a_check_fails_where_the_promise_is_not_kept(naive: Target, check: Callable[[Target], None]) -> None:
    """With the very finding that it is there for."""
    if check is checks.a_hostile_cookie_holds_nobody_up and not _cookies_are_slow():
        pytest.skip("this Python parses a cookie of backslashes in no time, so that nobody is held up by one")
    with pytest.raises(AssertionError, match=FINDINGS[check]):
        check(naive)


def test_memory_that_is_taken_for_a_moment_is_noticed() -> None:
    """Also when it has been given back by the time that anybody looks."""
    with pytest.raises(AssertionError, match="grew by"):
        _take_memory(16 << 20, allowed=8 << 20)


def _take_memory(size: int, *, allowed: int) -> None:
    with flat_memory(os.getpid(), allowed), mmap.mmap(-1, size) as taken:
        for page in range(0, size, mmap.PAGESIZE):
            taken[page] = 1


def _cookies_are_slow() -> bool:
    """Whether twice the backslashes take four times as long, as they did in CPython until 2024."""

    def seconds(size: int) -> float:
        started = time.perf_counter()
        http.cookies._unquote('"' + "\\" * size + '"')
        return time.perf_counter() - started

    return seconds(8_000) > 3 * seconds(4_000) > 0.01
