"""MLflow: save the pipeline in MLflow's own format, as `mlflow models serve` takes it."""

import sys

import joblib
import mlflow.sklearn

if __name__ == "__main__":
    artefact, folder = sys.argv[1:]
    mlflow.sklearn.save_model(joblib.load(artefact), folder)
