"""Output and error lines, byte for byte."""

from __future__ import annotations

import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.batches.model import RequestStatus
from lowtide.batches.results import NEVER_RAN, FinishedLine, render
from lowtide.core.ids import BatchId

BATCH = BatchId(uuid.UUID(int=0xABC))
ID = "batch_req_00000000000000000000000000000abc00000007"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        pytest.param(
            FinishedLine(7, "a", 200, "req_1", '{ "n": 1.0 }'),
            '{"id":"%s","custom_id":"a","response":{"status_code":200,"request_id":"req_1",'
            '"body":{ "n": 1.0 }},"error":null}\n',
            id="success",
        ),
        pytest.param(
            FinishedLine(7, "a", 400, "", '{"error":null}'),
            '{"id":"%s","custom_id":"a","response":{"status_code":400,"request_id":"%s",'
            '"body":{"error":null}},"error":null}\n',
            id="refusal without a request id",
        ),
        pytest.param(
            FinishedLine(7, "a", error_code="timeout", error_message='say "when"'),
            '{"id":"%s","custom_id":"a","response":null,"error":{"code":"timeout",'
            '"message":"say \\"when\\""}}\n',
            id="no answer",
        ),
        pytest.param(
            FinishedLine(7, '"\\\u2028</script>é', 200, "r", '"é"'),
            '{"id":"%s","custom_id":"\\"\\\\\\u2028</script>é","response":{"status_code":200,'
            '"request_id":"r","body":"é"},"error":null}\n',
            id="odd characters",
        ),
        pytest.param(
            FinishedLine(7, "a", 200, "r", '{"x_lowtide":1}', model_revision="v2\u2028"),
            '{"id":"%s","custom_id":"a","response":{"status_code":200,"request_id":"r",'
            '"x_lowtide":{"model_revision":"v2\\u2028"},"body":{"x_lowtide":1}},"error":null}\n',
            id="revision of the model",
        ),
    ],
)
def test_line_renders_to_exact_bytes(line: FinishedLine, text: str) -> None:
    assert render(BATCH, line) == text.replace("%s", ID).encode()


SEPARATORS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


def _minimal_json(text: str) -> str:
    """Return a JSON string with minimal escapes, as some engines write it."""
    return json.dumps(text, ensure_ascii=False)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(
            FinishedLine(7, SEPARATORS, 200, SEPARATORS, _minimal_json(f"x{SEPARATORS}y")),
            id="answer",
        ),
        pytest.param(
            FinishedLine(7, SEPARATORS, error_code="timeout", error_message=SEPARATORS), id="error"
        ),
        pytest.param(
            FinishedLine(7, "a", 200, "", f'{{"{SEPARATORS[-3:]}":1}}'),
            id="key",
        ),
    ],
)
def test_rendered_line_has_no_inner_line_separator(line: FinishedLine) -> None:
    rendered = render(BATCH, line).decode()
    assert rendered.splitlines() == [rendered[:-1]]
    parsed = json.loads(rendered)
    assert parsed["custom_id"] == line.custom_id
    if line.body is not None:
        assert parsed["response"]["body"] == json.loads(line.body)
    else:
        assert parsed["error"]["message"] == line.error_message


def test_neighbours_of_separators_are_not_escaped() -> None:
    text = "é\u2027\u202a\u0084\u0086"
    assert text.encode() in render(BATCH, FinishedLine(7, "a", 200, "", _minimal_json(text)))


_TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(SEPARATORS))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=5,
)


@given(_TEXT, st.integers(100, 599), _TEXT, _JSON)
def test_rendered_line_is_one_json_object(
    custom_id: str, status: int, request: str, body: object
) -> None:
    line = FinishedLine(1, custom_id, status, request, json.dumps(body, ensure_ascii=False))
    rendered = render(BATCH, line)
    assert len(rendered.decode().splitlines()) == 1
    parsed = json.loads(rendered)
    assert parsed["custom_id"] == custom_id
    request_id = request or parsed["id"]
    assert parsed["response"] == {"status_code": status, "request_id": request_id, "body": body}
    assert line.succeeded is (200 <= status < 300)


def test_request_without_answer_did_not_succeed() -> None:
    assert not FinishedLine(1, "a").succeeded
    assert {status: code for status, (code, _) in NEVER_RAN.items()} == {
        RequestStatus.CANCELLED: "batch_cancelled",
        RequestStatus.EXPIRED: "batch_expired",
    }
