"""Runtime: what executes one fitted estimator, whatever form it has been brought into."""

from typing import Any, Protocol

from app.pipelines.base import RawOutput


class Runtime(Protocol):
    """One form of an estimator. Called by one thread at a time."""

    @property
    def name(self) -> str:
        """Which form that is, in a few words."""

    @property
    def steady(self) -> bool:
        """Whether the number and the size of rows decide how long a call takes, and not somebody's code."""

    def predict(self, inputs: Any, rows: int) -> RawOutput:
        """Answer for `rows` rows of what `Pipeline.preprocess` makes; one finite answer for each row.

        Raises ModelFailed for an answer of another shape, or one that is not finite, and whatever the estimator raises.
        """
