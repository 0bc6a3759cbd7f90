"""Whether two runtimes answer alike: what every form is tested by."""

from typing import Any

import numpy as np

from app.runtimes.base import Runtime

TOLERANCE = 1e-9


def assert_same_answers(form: Runtime, reference: Runtime, inputs: Any, rows: int) -> None:
    """Labels are equal, unless the reference cannot tell them apart, and numbers within `TOLERANCE`."""
    ours, theirs = form.predict(inputs, rows), reference.predict(inputs, rows)
    if theirs.values is not None:
        np.testing.assert_allclose(ours.values, theirs.values, rtol=TOLERANCE, atol=TOLERANCE)
        return
    same = np.asarray(ours.classes) == np.asarray(theirs.classes)
    if theirs.probabilities is None:
        assert ours.probabilities is None
        assert same.all()
        return
    expected = np.asarray(theirs.probabilities)
    np.testing.assert_allclose(ours.probabilities, expected, rtol=TOLERANCE, atol=TOLERANCE)
    chosen = np.take_along_axis(expected, np.asarray(ours.classes)[:, None], axis=1)[:, 0]
    assert (same | (expected.max(axis=1) - chosen < 1e-12)).all()
