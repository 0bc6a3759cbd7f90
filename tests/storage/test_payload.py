"""A record is cut into columns at its tabs, and comes out as if it had been parsed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from app.errors import FieldError
from app.inference.identifiers import new_ids
from app.manifest import LogRules, Outputs
from app.pipelines.base import Prediction
from app.storage.lines import unframe
from app.storage.payload import OWN, SHARED, sqlite_values
from app.storage.records import Origin, Recorder, timestamp
from tests.support.manifests import GAP, NUMBER, TEXT, make_manifest

ID = new_ids(1)[0]
AT = timestamp()
CLASSIFIER = make_manifest(NUMBER, GAP, TEXT)
REGRESSION = make_manifest(
    NUMBER, GAP, TEXT, task="regression", outputs=Outputs(target="answer", labels=(), probabilities=False)
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["null", "NaN", "\0", "\t", "\n", '"', "\\", '\\"', "\u2028", "\U0001f600", '\t,"output":\t']
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
OUTCOMES = st.one_of(
    st.builds(Prediction, TEXTS | st.integers() | st.booleans(), st.none() | st.dictionaries(TEXTS, NUMBERS)),
    st.builds(lambda: FieldError("model_failed", "the model failed on this row")),
)
ROWS = st.fixed_dictionaries({NUMBER.name: NUMBERS, GAP.name: st.none() | NUMBERS, TEXT.name: TEXTS})
RULES = st.sampled_from(
    [LogRules(), LogRules(default="drop"), LogRules(fields={TEXT.name: "hash", NUMBER.name: "drop"})]
)


def _payload(
    row: dict[str, Any], outcome: Any, origin: Origin, *, rules: LogRules | None = None, latency_ms: float = 1.5
) -> bytes:
    recorder = Recorder(CLASSIFIER, rules or LogRules(), b"key")
    payload = unframe(recorder.frames([(ID, row, outcome)], origin, latency_ms, AT)[0][:-1])
    assert payload is not None
    return payload


@given(
    row=ROWS,
    outcome=OUTCOMES,
    origin=st.builds(Origin, TEXTS, TEXTS, st.sampled_from(["v1", "v2"])),
    rules=RULES,
    latency_ms=st.floats(0, 1e9),
)
def test_cutting_gives_what_parsing_gives(
    row: dict[str, Any], outcome: Any, origin: Origin, rules: LogRules, latency_ms: float
) -> None:
    """Whatever callers say, no tab of theirs is a raw one; and encoded again, without tabs, a record is parsed."""
    payload = _payload(row, outcome, origin, rules=rules, latency_ms=latency_ms)
    assert payload.count(b"\t") == 14
    assert sqlite_values([payload]) == sqlite_values([to_json(from_json(payload))])


@given(row=ROWS, value=NUMBERS)
def test_a_number_is_an_output_without_a_label(row: dict[str, Any], value: float) -> None:
    """Neither has a regression any probabilities."""
    (frame,) = Recorder(REGRESSION, LogRules(), b"").frames(
        [(ID, row, Prediction(value))], Origin("r", "p", "v1"), 1.5, AT
    )
    payload = unframe(frame[:-1])
    assert payload is not None
    ((own,),) = (sqlite_values([payload]).values(),)
    found = dict(zip(OWN, own, strict=True))
    assert (from_json(found["output"]), found["label"], found["probabilities"]) == (value, None, None)
    assert sqlite_values([payload]) == sqlite_values([to_json(from_json(payload))])


def test_rows_with_the_same_origin_are_put_together_in_order() -> None:
    """The rest of their columns is one list."""
    rows = [({NUMBER.name: float(n)}, "v1" if n % 3 else "v2") for n in range(9)]
    found = sqlite_values([_payload(row, Prediction("yes"), Origin("r", "p", protocol)) for row, protocol in rows])
    inputs = OWN.index("inputs")
    assert {shared[SHARED.index("protocol")]: own[inputs :: len(OWN)] for shared, own in found.items()} == {
        protocol: [to_json(row).decode() for row, other in rows if other == protocol] for protocol in ("v2", "v1")
    }


@pytest.mark.parametrize(
    ("change", "by"),
    [
        (b',"output":\t', b',"label" :\t'),  # both are labels now, so that an output is missing
        (ID.encode(), b"not-an-id"),
        (ID.encode(), b"g" * 32),
        (b'"protocol":"v1",', b""),
    ],
)
def test_what_is_no_record_is_refused_with_or_without_tabs(change: bytes, by: bytes) -> None:
    """What does not look as this release puts it together is parsed, and parsing tells."""
    payload = _payload({NUMBER.name: 1.0}, Prediction("yes"), Origin("r", "p", "v1")).replace(change, by)
    for each in (payload, payload.replace(b"\t", b"")):
        with pytest.raises((ValueError, KeyError)):
            sqlite_values([each])


def test_members_in_another_order_are_found_by_name() -> None:
    """Another release may put tabs elsewhere."""
    payload = _payload({NUMBER.name: 1.0}, Prediction("yes", {"yes": 1.0}), Origin("r", "p", "v1"))
    swapped = payload.replace(b'"inputs":', b'"in":').replace(b'"probabilities":', b'"inputs":')
    other = swapped.replace(b'"in":', b'"probabilities":')
    ((own,),) = (sqlite_values([other]).values(),)
    found = dict(zip(OWN, own, strict=True))
    assert (found["inputs"], from_json(found["probabilities"])) == ('{"yes":1.0}', {NUMBER.name: 1.0})
