"""What a model means to a caller: rows in, predictions out."""

from app.manifest import Manifest
from app.pipelines.base import Pipeline
from app.pipelines.tabular import TabularPipeline
from app.pipelines.text import TextPipeline

__all__ = ["Pipeline", "pipeline_for"]


def pipeline_for(manifest: Manifest) -> Pipeline:
    """The pipeline that fits what the estimator takes."""
    return TextPipeline(manifest) if manifest.artefact.container == "texts" else TabularPipeline(manifest)
