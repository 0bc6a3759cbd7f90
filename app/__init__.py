"""Presage: a FastAPI server for fitted scikit-learn pipelines."""

__version__ = "0.1.0"
