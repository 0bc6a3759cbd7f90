"""Text that other languages would take for orders is text here: stored as it came, or refused."""

from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import func, select

from app.storage.tables import ApiKeyRow, ClientRow, FeedbackRow, PredictionRow
from tests.support.asgi import InProcess

ORDERS = {
    "SQL": "'; DROP TABLE predictions; --",
    "SQL union": "x' UNION SELECT secret_hash FROM clients --",
    "SQL comment": "1/**/OR/**/1=1",
    "NoSQL": '{"$gt": ""}',
    "LDAP": "*)(uid=*))(|(uid=*",
    "template": "{{7*7}}${7*7}<%= 7*7 %>#{7*7}",
    "lookup": "${jndi:ldap://127.0.0.1:9/a}",
    "format": "%s%n%x{0}{self}%(name)s",
    "shell": "$(id)`id`;id|id&&id",
    "script": "<script>alert(1)</script>",
    "path": "../../../etc/passwd",
    "header": "a\r\nX-Injected: 1\r\n\r\n",
    "log line": '\n{"level": "error", "event": "forged"}\n',
    "terminal": "\x1b[31mred\x1b[0m\x07",
    "right to left": "\u202egnp.exe\u202c",
    "marks": "a" + "\u0301" * 2_000,
    "confusables": "ѕеntіmеnt",  # noqa: RUF001 -- which is the point
    "noncharacters": "\ufffe\uffff\U0010ffff",
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_text_is_on_record_as_it_came(logged_app: InProcess, order: str) -> None:
    """Predicted, logged and read again, letter for letter; and nothing else in the database is another."""
    before = _counts(logged_app)
    answer = logged_app.request("POST", "/v2/predict/sentiment", json_body={"inputs": {"text": order}})
    assert answer.status == 200, answer.body
    found = logged_app.request("GET", f"/v2/predictions/{answer.json()['id']}")
    assert found.json()["inputs"] == {"text": order}
    after = _counts(logged_app)
    assert after == {**before, "predictions": before["predictions"] + 1}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_an_order_where_a_name_belongs_is_refused(logged_app: InProcess, order: str) -> None:
    """As a model, version, filter, id, truth, client, scope, plan, key or user: no 5xx, and nothing changes."""
    before = _counts(logged_app)
    identifier = logged_app.request("POST", "/v2/predict/iris", json_body={"inputs": IRIS}).json()["id"]
    word = quote(order, safe="")
    answers = [
        logged_app.request("POST", "/v2/predict/" + order.replace("/", ""), json_body={"inputs": {"text": "a"}}),
        logged_app.request("POST", "/v2/predict/iris", json_body={"inputs": IRIS}, query=f"version={word}"),
        logged_app.request("POST", "/v2/predict/iris", json_body={"inputs": {**IRIS, order: 1}}),
        logged_app.request("GET", "/v2/catalog/" + order.replace("/", "")),
        logged_app.request("GET", "/v2/predictions", query=f"model={word}"),
        logged_app.request("GET", "/v2/predictions", query=f"cursor={word}"),
        logged_app.request("POST", "/v2/feedback", json_body={"prediction_id": identifier, "truth": order}),
        logged_app.request("POST", "/v2/feedback", json_body={"prediction_id": order, "truth": "setosa"}),
        logged_app.request("POST", "/admin/clients", json_body={"name": order}),
        logged_app.request("POST", "/admin/clients", json_body={"name": "fine", "scopes": [order]}),
        logged_app.request("POST", "/admin/clients", json_body={"name": "fine", "plan": order}),
        logged_app.request("PATCH", "/admin/clients/" + order.replace("/", "")[:60], json_body={"plan": None}),
        logged_app.request("DELETE", "/admin/keys/" + order.replace("/", "")[:60]),
        logged_app.request("POST", "/auth/token", body=f"grant_type={word}".encode(), headers=FORM),
        logged_app.request("POST", "/auth/token", body=_password(word), headers=FORM),
    ]
    assert {answer.status for answer in answers} <= {400, 404, 405, 422, 429}  # 429: another guess at a password
    assert not [answer.body for answer in answers if order.encode() in answer.body]
    assert _counts(logged_app) == {**before, "predictions": before["predictions"] + 1}
    label = logged_app.request("GET", "/v2/predictions", query=f"label={word}")  # any label may be asked for
    assert (label.status, label.json()) == (200, {"predictions": []}) or label.status == 422


IRIS = {"sepal length (cm)": 5.1, "sepal width (cm)": 3.5, "petal length (cm)": 1.4, "petal width (cm)": 0.2}
FORM = [("content-type", "application/x-www-form-urlencoded")]


def _password(word: str) -> bytes:
    return f"grant_type=password&username={word}&password={word}".encode()


def _counts(app: InProcess) -> dict[str, int]:
    services = app.app.services
    app.run(services.log.flush(5))
    tables: dict[str, Any] = {
        "predictions": PredictionRow,
        "feedback": FeedbackRow,
        "clients": ClientRow,
        "keys": ApiKeyRow,
    }
    with services.database.reading() as connection:
        return {
            name: connection.execute(select(func.count()).select_from(row)).scalar_one() for name, row in tables.items()
        }
