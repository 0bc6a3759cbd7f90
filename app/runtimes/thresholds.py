"""Where the trees of an estimator branch: the numbers at which an answer may turn."""

from typing import Any

import numpy as np

from app.runtimes.folding import kind_of
from app.runtimes.threads import walk_estimators


def raw_thresholds(estimator: Any) -> list[tuple[int, float]]:
    """(column, threshold) of every branch, where the trees see the inputs as they come; otherwise none."""
    if kind_of(estimator) == "Pipeline":
        if any(step not in (None, "passthrough") for _, step in estimator.steps[:-1]):
            return []
        return raw_thresholds(estimator.steps[-1][1])
    places: set[tuple[int, float]] = set()
    for inner in walk_estimators(estimator):
        tree = getattr(inner, "tree_", None)
        if tree is not None:
            branches = tree.feature >= 0
            places.update(zip(tree.feature[branches].tolist(), tree.threshold[branches].tolist(), strict=True))
        for stage in getattr(inner, "_predictors", ()):
            for predictor in stage:
                nodes = predictor.nodes
                nodes = nodes[(nodes["is_leaf"] == 0) & (nodes["is_categorical"] == 0)]
                thresholds = nodes["num_threshold"]
                finite = np.isfinite(thresholds)
                columns = nodes["feature_idx"][finite]
                places.update(zip(columns.tolist(), thresholds[finite].tolist(), strict=True))
    return sorted(places)
