"""A batch is read the same whether in one pass or item by item."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.parsing import parse_batch, split_items
from app.api.v1 import BATCH_BODY as TEXTS
from app.api.v2 import BATCH_BODY as ROWS
from app.errors import FieldError, InvalidInput, MalformedJson, PresageError, TooManyRows
from app.pipelines import pipeline_for
from tests.support.manifests import GAP, NUMBER, TEXT, make_manifest

ODD_ITEMS = [b'{"sepal length (cm)": %s}' % (b"9" * 5_000), b'"\\ud800"', b"[" * 300 + b"]" * 300, b"NaN"]


@pytest.mark.parametrize("item", ODD_ITEMS, ids=["long integer", "surrogate", "nested", "nan"])
def test_an_item_that_one_parser_takes_for_no_json_spoils_no_other(item: bytes) -> None:
    """The rows beside it are rows; it alone is an error."""
    pipeline = pipeline_for(make_manifest(NUMBER))
    good = b'{"sepal length (cm)": 1}'
    rows = parse_batch(b'{"inputs": [%s, %s, %s]}' % (good, item, good), pipeline, ROWS, 10)
    assert [isinstance(row, FieldError) for row in rows] == [False, True, False]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=20,
)


@given(items=st.lists(JSON_VALUES, min_size=1, max_size=10), indent=st.sampled_from([None, 0, 2]))
def test_items_are_split_as_the_standard_library_reads_them(items: list[Any], indent: int | None) -> None:
    """Whatever the items are, and however the text is laid out."""
    assert split_items(json.dumps({"inputs": items}, indent=indent).encode(), "inputs", 10) == items


@given(document=JSON_VALUES)
def test_any_other_document_is_refused_as_an_input_that_does_not_fit(document: Any) -> None:
    """It is JSON, but no batch."""
    if isinstance(document, dict) and list(document) == ["inputs"] and isinstance(document["inputs"], list):
        return
    with pytest.raises(InvalidInput):
        split_items(json.dumps(document).encode(), "inputs", 10)


@given(content=st.binary(max_size=200) | st.text(alphabet='{}[]",:inputs1e+-.\\u0 \n').map(str.encode))
def test_any_bytes_are_items_or_a_clear_error(content: bytes) -> None:
    """Nothing but our own errors comes out."""
    try:
        items = split_items(content, "inputs", 10)
    except (MalformedJson, InvalidInput, TooManyRows):
        return
    assert json.loads(content) == {"inputs": items}


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"inputs"', '{"inputs":', '{"inputs": [', '{"inputs": [1', '{"inputs": [1,', '{"inputs": [1,]}',
     '{"inputs": [1]', '{"inputs": [1]} x', '{"inputs": [1] "a"}', '{"inputs" [1]}', "{inputs: [1]}", "{'inputs': [1]}",
     '{"inputs": ' + "[" * 100_000],
)  # fmt: skip
def test_text_that_is_no_json_is_malformed(content: str) -> None:
    """Cut off anywhere, or spelt otherwise."""
    with pytest.raises(MalformedJson):
        split_items(content.encode(), "inputs", 10)


@given(
    rows=st.lists(
        st.fixed_dictionaries({NUMBER.name: JSON_VALUES}, optional={"age": JSON_VALUES}), min_size=1, max_size=8
    )
)
def test_one_pass_and_item_by_item_come_to_the_same(rows: list[Any]) -> None:
    """With few rows allowed a body is read item by item at once; with many, in one pass first."""
    pipeline = pipeline_for(make_manifest(NUMBER, GAP))
    content = json.dumps({"inputs": rows}).encode()
    assert _outcome(content, pipeline, ROWS, 8) == _outcome(content, pipeline, ROWS, 10_000)


@given(texts=st.lists(st.text(max_size=25), min_size=1, max_size=8))
def test_texts_come_to_the_same_too(texts: list[str]) -> None:
    """Commas inside of texts change nothing but the way."""
    pipeline = pipeline_for(make_manifest(TEXT, container="texts"))
    content = json.dumps({"texts": texts}).encode()
    assert _outcome(content, pipeline, TEXTS, 8) == _outcome(content, pipeline, TEXTS, 10_000)


def _outcome(content: bytes, pipeline: Any, body: Any, most: int) -> Any:
    try:
        rows = parse_batch(content, pipeline, body, most)
    except PresageError as error:
        return error.code
    return [(row.code, row.field, row.row) if isinstance(row, FieldError) else row for row in rows]
