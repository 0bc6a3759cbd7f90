"""The formulas, against figures that stand in books or can be counted by hand."""

import pytest

from app.release.statistics import shift, sign_test, spread, wilson


@pytest.mark.parametrize(
    ("worse", "better", "expected"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 5, 1.0), (6, 0, 2 / 64), (0, 6, 2 / 64), (8, 2, 112 / 1024)],
)
def test_the_sign_test_is_exact(worse: int, better: int, expected: float) -> None:
    """Twice the tail of a fair coin."""
    assert sign_test(worse, better) == pytest.approx(expected)


def test_wilsons_interval_is_wilsons() -> None:
    """For 81 of 263 it is (0.2553, 0.3662): R. G. Newcombe, Statistics in Medicine 17, 1998, table I."""
    found = wilson(81, 263)
    assert (round(found["low"], 4), round(found["high"], 4)) == (0.2553, 0.3662)
    assert wilson(0, 0) == {"rows": 0, "share": None, "low": None, "high": None}
    assert wilson(5, 5)["high"] == 1.0


def test_a_spread_has_mean_and_quantiles() -> None:
    """None of either without a number."""
    assert spread([0.0, 1.0, 2.0, 3.0, 4.0]) == {"count": 5, "mean": 2.0, "p5": 0.2, "p50": 2.0, "p95": 3.8}
    assert spread([]) == {"count": 0, "mean": None, "p5": None, "p50": None, "p95": None}


def test_a_shift_is_measured_in_standard_deviations_of_then() -> None:
    """Two answers at -1 and 1 have a standard deviation of 1."""
    assert shift([-1.0, 1.0], [-0.5, 1.5]) == (0.5, 0.5)
    assert shift([2.0, 2.0], [2.0, 2.0]) == (0.0, 0.0)
    assert shift([2.0, 2.0], [2.0, 3.0]) is None
    assert shift([], []) is None
