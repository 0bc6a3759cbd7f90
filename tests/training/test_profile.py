"""Profiles: histograms that are true to the data, whatever the data are."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.manifest import CategoryProfile, InputField, NumberProfile
from app.training.profile import BINS, category_profile, field_profile, number_profile

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(st.none() | FINITE, min_size=1, max_size=200))
def test_every_number_is_in_the_bin_that_the_edges_say(values: list[float | None]) -> None:
    """counts[i] is how many lie in [edges[i], edges[i+1]), the largest value included, and none is lost."""
    profile = number_profile(values)
    numbers = [value for value in values if value is not None]
    assert (profile.count, profile.missing) == (len(numbers), len(values) - len(numbers))
    assert list(profile.edges) == sorted(set(profile.edges))
    bins = zip(profile.edges, profile.edges[1:], profile.counts, strict=False)
    assert [sum(low <= n < high for n in numbers) for low, high, _ in bins] == list(profile.counts)
    assert sum(profile.counts) == len(numbers)


def test_bins_hold_about_equally_many() -> None:
    """Edges are quantiles: a skewed distribution has as many in each bin as an even one."""
    profile = number_profile(np.random.default_rng(0).lognormal(sigma=2, size=1_500).tolist())
    assert len(profile.counts) == BINS
    assert max(profile.counts) - min(profile.counts) <= 2
    assert profile.mean == pytest.approx(np.random.default_rng(0).lognormal(sigma=2, size=1_500).mean())


def test_a_constant_has_one_bin() -> None:
    """So has a single value; nothing is divided by zero."""
    profile = number_profile([3.0, 3.0, None])
    assert profile.edges[0] == 3.0
    assert profile.counts == (2,)
    assert profile.std == 0.0


def test_nothing_but_missing_values_has_no_bin() -> None:
    """The profile says how many are missing, and that is all."""
    assert number_profile([None, None]) == NumberProfile(count=0, missing=2, mean=0, std=0, edges=(), counts=())


def test_edges_survive_json() -> None:
    """The last edge is the next number after the largest; written and read again it still is."""
    profile = number_profile([0.1, 0.2, 0.3])
    again = NumberProfile.model_validate_json(json.dumps(profile.model_dump()))
    assert again.edges[-1] == np.nextafter(0.3, np.inf)


def test_categories_are_counted_by_their_text() -> None:
    """As labels are written in probabilities: True is `True`, 1 is `1`."""
    counted = category_profile(["b", "a", "b", None])
    assert counted == CategoryProfile(count=3, missing=1, counts={"a": 1, "b": 2})
    assert category_profile([True, False, True]).counts == {"False": 1, "True": 2}


def test_a_text_is_profiled_by_its_length() -> None:
    """No text ends up in the profile."""
    profile = field_profile(InputField(name="t", dtype="text", max_length=9), ["four", "sixsix", None])
    assert isinstance(profile, NumberProfile)
    assert (profile.mean, profile.missing) == (5.0, 1)
