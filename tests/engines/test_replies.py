from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.engines.attribution import EngineState, Fault, attribute, kind_of, reason_of
from lowtide.engines.outcomes import Answered, Unanswered, Usage
from lowtide.engines.replies import Reply, outcome_of, parse_retry_after

NOW = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", None),
        ("7", 7.0),
        (" 0.5 ", 0.5),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:27:30 GMT", 0.0),
        ("-3", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("Wed, 99 Oct 2015 07:28:30 GMT", None),
    ],
)
def test_retry_after_accepts_seconds_and_dates(value: str, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


@given(st.text(max_size=40))
def test_random_retry_after_is_parsed_or_ignored(value: str) -> None:
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (b'{"prompt_tokens":3,"completion_tokens":4}', Usage(3, 4)),
        (b'{"input_tokens":5,"output_tokens":6}', Usage(5, 6)),
        (b'{"prompt_tokens":8,"total_tokens":8}', Usage(8, 0)),
        (
            (
                b'{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":0},'
                b'"completion_tokens":7,"completion_tokens_details":{"reasoning_tokens":5}}'
            ),
            Usage(9, 7, 4, 5),
        ),
        (
            (
                b'{"input_tokens":9,"input_tokens_details":{"cached_tokens":4},'
                b'"output_tokens":7,"output_tokens_details":{"reasoning_tokens":5}}'
            ),
            Usage(9, 7, 4, 5),
        ),
        (
            b'{"prompt_tokens":9,"prompt_tokens_details":null,"completion_tokens_details":[1]}',
            Usage(9),
        ),
        (b'{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":-4}}', Usage(9)),
        (b'{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":1e999}}', Usage()),
        (b'{"prompt_tokens":-1,"completion_tokens":true}', Usage()),
        (b'{"prompt_tokens":1e30,"completion_tokens":99999999999999999999}', Usage()),
        (b'{"prompt_tokens":1e999}', Usage()),
        (b"null", Usage()),
        (b"[]", Usage()),
    ],
)
def test_usage_is_read_from_known_fields(usage: bytes, expected: Usage) -> None:
    outcome = outcome_of(Reply(200, "OK", b'{"usage":%b}' % usage))
    assert isinstance(outcome, Answered)
    assert outcome.usage == expected


JSON_BODIES = [
    b'{"a":1,"a":2}',
    b'{"big":123456789012345678901234567890,"small":1.10e-400,"x":1E400}',
    b'{"text":"\\u00e9 \\ud83d\\ude00 \\/ \xc3\xa9 \\n\\u0000"}',
    b' {"spaced" :  [1 , 2]} ',
    '"\u2028\x85"'.encode(),
    b"[]",
    b"null",
]


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("body", JSON_BODIES)
def test_json_is_kept_byte_for_byte(body: bytes, status: int) -> None:
    outcome = outcome_of(Reply(status, "", body))
    assert isinstance(outcome, Answered)
    assert outcome.body == body


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_pretty_printed_json_fits_on_one_line(value: object, newline: str) -> None:
    pretty = json.dumps(value, indent=2, ensure_ascii=False).replace("\n", newline)
    outcome = outcome_of(Reply(200, "OK", pretty.encode()))
    assert isinstance(outcome, Answered)
    assert outcome.body == pretty.replace("\n", " ").replace("\r", " ").encode()
    assert json.loads(outcome.body) == value


GARBAGE = [
    b"",
    b"<html>oops</html>",
    b'{"a":',
    b'{"a":NaN}',
    b'{"a":"\xff"}',
    b'{"a":"line\nbreak"}',
    b"{} {}",
    b"[" * 100_000,
    b"\x00",
]


@pytest.mark.parametrize("body", GARBAGE, ids=lambda body: repr(body[:12]))
def test_garbage_is_invalid_in_success_and_wrapped_in_error(body: bytes) -> None:
    unusable = outcome_of(Reply(200, "OK", body))
    assert isinstance(unusable, Unanswered)
    assert unusable.code == "invalid_response"
    wrapped = outcome_of(Reply(502, "Bad Gateway", body, "id", "3"))
    assert isinstance(wrapped, Answered)
    assert (wrapped.status_code, wrapped.retry_after, wrapped.request_id) == (502, 3.0, "id")
    error = json.loads(wrapped.body)["error"]
    assert error["type"] == "upstream_error"
    assert error["message"]
    assert b"\\u0000" not in wrapped.body


_LISTS = b"[[]%b]" % (b",[]" * 1_000_000)


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(_LISTS, id="an array"),
        pytest.param(b'{"error":%b}' % _LISTS, id="an error"),
        pytest.param(b'{"error":{"message":"No","details":%b}}' % _LISTS, id="details"),
        pytest.param(b'{"usage":{"prompt_tokens":%b}}' % _LISTS, id="usage"),
        pytest.param(b'{"object":%b}' % _LISTS, id="object"),
        pytest.param(b'{"text":"%b"}' % (b"x" * 3_000_000 + "😀".encode()), id="text"),
        pytest.param("😀é".encode() * 500_000, id="no JSON"),
    ],
)
def test_large_reply_takes_bounded_memory(body: bytes, status: int) -> None:
    reply = Reply(status, "", body)
    tracemalloc.start()
    outcome_of(reply)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Pieces are decoded one at a time, into up to four times their size.
    assert peak < 6 << 20


ERRORS_IN_200 = [
    pytest.param(b'{"error":{"message":"m","type":"server_error","code":null}}', 500, id="server"),
    pytest.param(b'{"error":{"message":"m","code":429}}', 429, id="HTTP code"),
    pytest.param(b'{"error":{"message":"m","code":"503"}}', 503, id="HTTP code as text"),
    pytest.param(b'{"error":{"message":"m","status":502}}', 502, id="HTTP status"),
    pytest.param(b'{"error":{"message":"m","type":"rate_limit_error"}}', 429, id="rate limit"),
    pytest.param(
        b'{"error":{"message":"m","code":"rate_limit_exceeded"}}', 429, id="rate limit code"
    ),
    pytest.param(b'{"error":{"type":"overloaded_error"}}', 503, id="overloaded"),
    pytest.param(b'{"error":{"type":"invalid_request_error"}}', 400, id="invalid request"),
    pytest.param(b'{"error":{"type":"BadRequestError","code":400}}', 400, id="vLLM"),
    pytest.param(b'{"error":{"code":"invalid_prompt"}}', 400, id="invalid prompt"),
    pytest.param(b'{"error":{"code":"context_length_exceeded"}}', 400, id="prompt too long"),
    pytest.param(b'{"error":{"code":"content_filter"}}', 400, id="content filter"),
    pytest.param(b'{"error":{"code":"invalid_api_key"}}', 401, id="key"),
    pytest.param(b'{"error":{"type":"authentication_error"}}', 401, id="authentication"),
    pytest.param(b'{"error":{"type":"permission_error"}}', 403, id="permission"),
    pytest.param(b'{"error":{"type":"NotFoundError"}}', 404, id="not found"),
    pytest.param(b'{"object":"error","message":"m","code":400}', 400, id="vLLM before 0.10"),
    pytest.param(
        b'{"object":"response","status":"failed","error":{"code":"server_error","message":"m"}}',
        500,
        id="a failed response",
    ),
    pytest.param(b'{"error":"out of memory"}', 500, id="text"),
    pytest.param(b'{"error":{"message":"m","code":200}}', 500, id="no error code"),
    pytest.param(b'{"error":[1]}', 500, id="a list"),
    pytest.param(b"null", 500, id="null"),
    pytest.param(b"[]", 500, id="an array"),
    pytest.param(b'[{"error":1}]', 500, id="an array of errors"),
    pytest.param(b'"text"', 500, id="a string"),
    pytest.param(b"7", 500, id="a number"),
]


@pytest.mark.parametrize(("body", "status"), ERRORS_IN_200)
@pytest.mark.parametrize("http_status", [200, 201])
def test_error_body_with_2xx_is_no_success(body: bytes, status: int, http_status: int) -> None:
    outcome = outcome_of(Reply(http_status, "OK", body, "id", "3"))
    assert isinstance(outcome, Answered)
    assert (outcome.status_code, outcome.body) == (status, body)
    assert (outcome.succeeded, outcome.request_id, outcome.retry_after) == (False, "id", 3.0)


def test_missing_model_is_detected_in_2xx() -> None:
    body = b'{"error":{"message":"The model `m` does not exist.","type":"NotFoundError"}}'
    outcome = outcome_of(Reply(200, "OK", body))
    assert isinstance(outcome, Answered)
    assert (outcome.status_code, outcome.lacks_model) == (404, True)


@pytest.mark.parametrize(
    "body",
    [
        b'{"object":"response","error":null}',
        b'{"error":{},"choices":[]}',
        b'{"error":"","choices":[]}',
        b'{"error":false}',
        b'{"choices":[{"error":{"code":500}}]}',
        b'{"object":"chat.completion"}',
        b"{}",
    ],
)
def test_empty_error_field_is_success(body: bytes) -> None:
    outcome = outcome_of(Reply(200, "OK", body))
    assert isinstance(outcome, Answered)
    assert outcome.succeeded


@given(st.binary(max_size=60), st.integers(200, 599))
def test_random_reply_has_outcome(body: bytes, status: int) -> None:
    outcome = outcome_of(Reply(status, "", body))
    if isinstance(outcome, Answered):
        json.loads(outcome.body)
        assert b"\n" not in outcome.body


LACKS_MODEL = {
    "OpenAI": (404, b'{"error":{"message":"The model `gpt-9` does not exist or you do not have access to it.","type":"invalid_request_error","param":null,"code":"model_not_found"}}'),
    "vLLM": (404, b'{"error":{"message":"The model `m` does not exist.","type":"NotFoundError","param":"model","code":404}}'),
    "vLLM before 0.10": (404, b'{"object":"error","message":"The model `m` does not exist.","type":"NotFoundError","param":null,"code":404}'),
    "Ollama": (404, b'{"error":{"message":"model \\"m\\" not found, try pulling it first","type":"api_error","param":null,"code":null}}'),
    "Azure": (404, b'{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}'),
    "a gateway": (400, b'{"error":{"message":"no","code":"model_not_found"}}'),
    "OpenAI project": (403, b'{"error":{"message":"Project `p` does not have access to model `m`","type":"invalid_request_error","param":null,"code":"model_not_found"}}'),
}  # fmt: skip
OTHER_ERRORS = {
    "a path": (404, b'{"detail":"Not Found"}'),
    "a file": (404, b'{"error":{"message":"No such File object: file-1","type":"invalid_request_error","param":"id","code":null}}'),
    "an adapter's file": (404, b'{"object":"error","message":"The lora adapter \'m\' cannot be found.","type":"NotFoundError","code":404}'),
    "other status": (500, b'{"error":{"message":"The model `m` does not exist.","code":"model_not_found"}}'),
    "not JSON": (404, b"<h1>model does not exist</h1>"),
    "an array": (404, b"[]"),
    "numbers": (404, b'{"error":{"message":1,"code":[]}}'),
}  # fmt: skip


@pytest.mark.parametrize(("status", "body"), LACKS_MODEL.values(), ids=LACKS_MODEL.keys())
def test_missing_model_is_detected(status: int, body: bytes) -> None:
    outcome = outcome_of(Reply(status, "", body))
    assert isinstance(outcome, Answered)
    assert outcome.lacks_model


@pytest.mark.parametrize(("status", "body"), OTHER_ERRORS.values(), ids=OTHER_ERRORS.keys())
def test_other_errors_are_no_missing_model(status: int, body: bytes) -> None:
    outcome = outcome_of(Reply(status, "", body))
    assert isinstance(outcome, Answered)
    assert not outcome.lacks_model


OUT_OF_QUOTA = {
    "OpenAI": (429, b'{"error":{"message":"You exceeded your current quota, please check your plan and billing details.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}'),
    "the type alone": (429, b'{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","param":null,"code":null}}'),
    "an inactive account": (429, b'{"error":{"message":"Your account is not active","type":"billing_not_active","code":"billing_not_active"}}'),
    "spending limit": (400, b'{"error":{"code":"billing_hard_limit_reached","message":"Billing hard limit has been reached"}}'),
    "in a success": (200, b'{"error":{"code":"insufficient_quota"}}'),
}  # fmt: skip
REFUSED_CONTENT = {
    "Azure": (403, b'{"error":{"message":"The response was filtered","code":"content_filter","innererror":{"code":"ResponsibleAIPolicyViolation"}}}'),
    "its inner code": (403, b'{"error":{"code":"forbidden","innererror":{"code":"ResponsibleAIPolicyViolation"}}}'),
    "OpenRouter": (403, b'{"error":{"code":403,"message":"Your input was flagged","metadata":{"reasons":["violence"],"flagged_input":"..."}}}'),
    "a policy": (403, b'{"error":{"type":"content_policy_violation"}}'),
    "without the envelope": (403, b'{"code":"content_policy_violation"}'),
}  # fmt: skip
OTHER_REFUSALS = {
    "a rate": (429, b'{"error":{"message":"Rate limit reached for requests","type":"requests","code":"rate_limit_exceeded"}}'),
    "a refused key": (403, b'{"error":{"code":"permission_denied","message":"no moderation for you"}}'),
    "odd fields": (403, b'{"error":{"code":[],"type":{},"innererror":7,"metadata":"flagged_input"}}'),
    "not JSON": (429, b"insufficient_quota"),
    "other status": (500, b'{"error":{"code":"insufficient_quota"}}'),
}  # fmt: skip


@pytest.mark.parametrize(("status", "body"), OUT_OF_QUOTA.values(), ids=OUT_OF_QUOTA.keys())
def test_exhausted_quota_is_charged_to_engine(status: int, body: bytes) -> None:
    outcome = outcome_of(Reply(status, "", body, retry_after="7"))
    assert attribute(outcome, EngineState()) is Fault.ENGINE
    assert "quota" in reason_of(outcome)
    assert kind_of(outcome) == "out_of_quota"


@pytest.mark.parametrize(("status", "body"), REFUSED_CONTENT.values(), ids=REFUSED_CONTENT.keys())
def test_refused_content_is_charged_to_request(status: int, body: bytes) -> None:
    outcome = outcome_of(Reply(status, "", body))
    assert attribute(outcome, EngineState()) is Fault.REQUEST
    assert kind_of(outcome) == "http_403"


@pytest.mark.parametrize(("status", "body"), OTHER_REFUSALS.values(), ids=OTHER_REFUSALS.keys())
def test_other_refusals_are_charged_by_status(status: int, body: bytes) -> None:
    outcome = outcome_of(Reply(status, "", body))
    by_status = attribute(Answered(status, b"{}"), EngineState())
    assert attribute(outcome, EngineState()) is by_status
