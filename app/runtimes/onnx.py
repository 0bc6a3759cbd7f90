"""ONNX Runtime, for what nothing else fits: neural networks, kernels, naive Bayes of numbers. An optional extra.

In doubles only: a form that computes in floats differs by 1e-7, and beside a boundary that is another label. Importing
it takes a third of a second and 50 MB, so it is tried last.
"""

import warnings
from typing import Any

import numpy as np
import onnxruntime
import skl2onnx
from skl2onnx.common.data_types import DoubleTensorType

from app.errors import ModelFailed
from app.pipelines.base import RawOutput
from app.runtimes.folding import NotFoldable
from app.runtimes.heads import answer_values
from app.runtimes.sklearn import SklearnRuntime

_ERRORS_ONLY = 3


class OnnxRuntime:
    """One session, on the thread that calls it."""

    name = "ONNX Runtime"
    steady = True

    def __init__(self, session: Any, reference: SklearnRuntime) -> None:
        outputs = [output.name for output in session.get_outputs()]
        self._outputs = outputs if reference.has_probabilities else outputs[:1]
        self._session = session
        self._input = session.get_inputs()[0].name
        self._regression = reference.regression
        self._places = {label: place for place, label in enumerate(reference.classes)}

    def predict(self, inputs: Any, rows: int) -> RawOutput:
        """Answer for `rows` rows. Raises ModelFailed for gaps, which converted models treat in ways of their own."""
        if not np.isfinite(inputs).all():
            raise ModelFailed("the model was asked about a number that is not finite")
        answers = self._session.run(self._outputs, {self._input: inputs})
        if len(answers[0]) != rows:
            raise ModelFailed("the model answered another number of rows than it was asked")
        if self._regression:
            return answer_values(answers[0].ravel().tolist())
        classes = [self._places[label] for label in answers[0].tolist()]
        if len(answers) == 1:
            return RawOutput(classes=classes)
        if not np.isfinite(answers[1]).all():
            raise ModelFailed("the model answered a number that is not finite")
        return RawOutput(classes=classes, probabilities=answers[1])


def build_onnx(reference: SklearnRuntime) -> OnnxRuntime:
    """Raises NotFoldable for what cannot be converted, or not in doubles."""
    estimator = reference.estimator
    if not hasattr(estimator, "n_features_in_"):
        raise NotFoldable("it does not say how many columns it takes")
    options = None if reference.regression else {id(estimator): {"zipmap": False}}
    types = [("X", DoubleTensorType([None, estimator.n_features_in_]))]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = _ERRORS_ONLY
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a converter that reads what scikit-learn is about to rename
            model = skl2onnx.convert_sklearn(estimator, initial_types=types, options=options)
        session = onnxruntime.InferenceSession(model.SerializeToString(), settings, ["CPUExecutionProvider"])
    except Exception as error:  # each of its converters raises what it likes, often a bare RuntimeError
        raise NotFoldable(f"it cannot be converted in doubles ({type(error).__name__})") from error
    return OnnxRuntime(session, reference)
