"""scikit-learn alone, in one process: its answers, its rows a second, and its memory. The measure of all the others.

python -m benchmarks.inprocess ARTEFACT SECONDS < rows.json > result.json
"""

import json
import sys
import time
from pathlib import Path

import joblib

from benchmarks.processes import pss_bytes


def main() -> None:
    """Load, weigh, answer all rows, and answer them again for as long as was asked."""
    artefact, seconds = Path(sys.argv[1]), float(sys.argv[2])
    model = joblib.load(artefact)  # noqa: TID251 -- nothing of the service is here
    weight = pss_bytes("self")
    rows = json.load(sys.stdin)
    answers = model.predict(rows).tolist()
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        model.predict(rows)
        calls += 1
    rate = calls * len(rows) / (time.perf_counter() - started)
    json.dump({"answers": [str(answer) for answer in answers], "rate": rate, "pss_bytes": weight}, sys.stdout)


if __name__ == "__main__":
    main()
