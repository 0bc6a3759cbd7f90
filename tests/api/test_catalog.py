"""The catalog says what executes a version, and which forms were tried."""

from typing import Any

from tests.support.asgi import InProcess


def _version(app: InProcess, model: str) -> Any:
    answer = app.request("GET", f"/v2/catalog/{model}")
    assert answer.status == 200
    return answer.json()["versions"][0]


def test_each_form_is_shown_with_its_figures(app: InProcess) -> None:
    """For which calls it answers, what a row costs in calls of three sizes, and how it compares."""
    version = _version(app, "iris")
    assert version["runtime"].startswith("folded linear")
    forms = {form["form"]: form for form in version["forms"]}
    folded = forms["folded linear"]
    assert folded["chosen_for"] == "all" or folded["chosen_for"].startswith("1 to ")
    assert set(folded["microseconds"]) == {"1", "64", "1000"}
    assert folded["microseconds"]["1"] < forms["scikit-learn"]["microseconds"]["1"]
    assert folded["largest_difference"] < 1e-9
    assert folded["labels_equal"] is True
    assert "reason" not in folded
    assert forms["treelite"]["reason"] == "LogisticRegression has no trees"
    assert "chosen_for" not in forms["treelite"]


def test_a_model_that_has_one_form_shows_it(app: InProcess) -> None:
    """Code of one's own is executed by scikit-learn alone."""
    version = _version(app, "brittle")
    assert version["runtime"] == "scikit-learn"
    assert [form["form"] for form in version["forms"] if "chosen_for" in form] == ["scikit-learn"]
