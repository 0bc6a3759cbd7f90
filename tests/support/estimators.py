"""Estimators that misbehave on purpose; models that contain them need `MODEL_MODULES=tests.support.estimators`."""

import ctypes
import os
import signal
import subprocess
import sys
import time
import zlib
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from app.runtimes.politeness import is_polite


class Brittle(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Tells big from small; raises for a batch with 13 in it, and calls sys.exit for one with 14."""

    def fit(self, X: Any, y: Any) -> Self:
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: Any) -> Any:
        if (X == 13).any():
            raise RuntimeError("planted: the canary in the coal mine")
        if (X == 14).any():
            sys.exit("planted")
        return self.classes_[(X[:, 0] > 10).astype(int)]


class Forgetful(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Doubles its input; forgets the last row of three, and answers NaN for 13."""

    def fit(self, X: Any, y: Any) -> Self:
        self.fitted_ = True
        return self

    def predict(self, X: Any) -> Any:
        values = np.where(X[:, 0] == 13, np.nan, X[:, 0] * 2)
        return values[:-1] if len(values) == 3 else values


class Parrot(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Answers what it was told to, whatever it is asked."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer

    def fit(self, X: Any, y: Any) -> Self:
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: Any) -> Any:
        return self.classes_[[0] * len(X)]

    def predict_proba(self, X: Any) -> Any:
        return self.answer


class Slow(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Sleeps as many seconds as its input says, but never more than 5."""

    def fit(self, X: Any, y: Any) -> Self:
        self.fitted_ = True
        return self

    def predict(self, X: Any) -> Any:
        time.sleep(min(5.0, float(X[:, 0].max())))
        return X[:, 0] * 1.0


class Treacherous(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Answers its input, but raises for 13, sleeps a minute for 14, and for 15 counts for as long."""

    def fit(self, X: Any, y: Any) -> Self:
        self.fitted_ = True
        return self

    def predict(self, X: Any) -> Any:
        if (X == 13).any():
            raise RuntimeError("planted: the cuckoo in the nest")
        if (X == 14).any():
            time.sleep(60)
        until = time.monotonic() + 60 * (X == 15).any()
        while time.monotonic() < until:
            pass
        return X[:, 0] * 1.0


class Plodding(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Takes a twentieth of a second for each row, and answers it."""

    def fit(self, X: Any, y: Any) -> Self:
        self.fitted_ = True
        return self

    def predict(self, X: Any) -> Any:
        time.sleep(len(X) / 20)
        return X[:, 0] * 1.0


class Shouting(BaseEstimator):  # type: ignore[misc]
    """A transformer of texts, as people write them for themselves."""

    def fit(self, X: Any, y: Any = None) -> Self:
        self.fitted_ = True
        return self

    def transform(self, X: Any) -> Any:
        return [text.upper() for text in X]


class Hanging(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Takes ten minutes to be unpickled."""

    def predict(self, X: Any) -> Any:
        return X[:, 0] * 0.0

    def __setstate__(self, state: Any) -> None:
        time.sleep(600)


class Fingerprint(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Answers a number of each row's values and their types: rows that differ in anything have different answers."""

    def fit(self, X: Any, y: Any) -> Self:
        self.fitted_ = True
        return self

    def predict(self, X: Any) -> Any:
        return np.array([float(zlib.crc32(repr(list(row)).encode())) for row in X])


class Greedy(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Answers its input, and keeps so many MiB for ever."""

    def fit(self, X: Any, y: Any) -> Self:
        self.kept_: list[bytes] = []
        return self

    def predict(self, X: Any) -> Any:
        self.kept_ += [os.urandom(1 << 20) for _ in range(int(X[:, 0].max()))]
        return X[:, 0] * 1.0


class Seizing(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Answers its input after as many seconds, in which no other thread of the process runs."""

    def fit(self, X: Any, y: Any) -> Self:
        self.fitted_ = True
        return self

    def predict(self, X: Any) -> Any:
        ctypes.PyDLL(None).usleep(int(X[:, 0].max() * 1e6))
        return X[:, 0] * 1.0


class Deadly(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Ends the process that unpickles it."""

    def predict(self, X: Any) -> Any:
        return X[:, 0] * 0.0

    def __setstate__(self, state: Any) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class Looping(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Never comes to the end of being unpickled."""

    def predict(self, X: Any) -> Any:
        return X[:, 0] * 0.0

    def __setstate__(self, state: Any) -> None:
        while True:
            pass


class Leaving(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Ends the process that unpickles it as if all was well."""

    def predict(self, X: Any) -> Any:
        return X[:, 0] * 0.0

    def __setstate__(self, state: Any) -> None:
        os._exit(0)


class Spawning(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Starts another process when it is unpickled, and hangs."""

    def predict(self, X: Any) -> Any:
        return X[:, 0] * 0.0

    def __setstate__(self, state: Any) -> None:
        subprocess.run(["sleep", "598"], check=False)


class Oversized(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Wants ten gigabytes when it is unpickled."""

    def predict(self, X: Any) -> Any:
        return X[:, 0] * 0.0

    def __setstate__(self, state: Any) -> None:
        self.ballast_ = bytearray(10 << 30)


class Mannered(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Answers whether the thread that unpickled it was to be polite."""

    def predict(self, X: Any) -> Any:
        return X[:, 0] * 0.0 + self.polite_

    def __setstate__(self, state: Any) -> None:
        self.polite_ = float(is_polite())


class Scheduled(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Answers by which policy the process that unpickled it was scheduled."""

    def predict(self, X: Any) -> Any:
        return X[:, 0] * 0.0 + self.policy_

    def __setstate__(self, state: Any) -> None:
        self.policy_ = float(os.sched_getscheduler(0))
