"""Serve from arrays what was fitted on a DataFrame."""

from sklearn.base import BaseEstimator

from app.runtimes.threads import walk_estimators


def forget_column_names(estimator: BaseEstimator) -> None:
    """Let every estimator inside take arrays without a warning for each call that they have no column names.

    The order of the columns is the manifest's, so the names check nothing that is not checked already; a
    ColumnTransformer keeps the positions that it found for its columns.
    """
    for inner in walk_estimators(estimator):
        vars(inner).pop("feature_names_in_", None)
