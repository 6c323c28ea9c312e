from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from lowtide.engines.breaker import Probed
from lowtide.engines.flow import ByteBudget
from lowtide.engines.load import EngineLoad, LoadMeter
from lowtide.engines.model import EngineRequest, Ping
from lowtide.engines.outcomes import Answered, RetryPolicy, Unanswered, Usage
from lowtide.engines.upstream import UpstreamEngine
from lowtide.local.ports import free_port
from lowtide.telemetry.tracing import TraceContext

if TYPE_CHECKING:
    from lowtide.engines.outcomes import Outcome
    from tests.engines.conftest import Script, ScriptedUpstream

CHAT = "/v1/chat/completions"


def ask(url: str, *bodies: bytes, **options: Any) -> list[Outcome]:
    """Run the bodies as one call, and return the outcomes in their order."""

    async def main() -> list[Outcome]:
        engine = UpstreamEngine(url, **options)
        requests = [EngineRequest(n, CHAT, body, 1, spot=False) for n, body in enumerate(bodies)]
        outcomes = {key: outcome async for group in engine.run(requests) for key, outcome in group}
        await engine.close()
        return [outcomes[n] for n in range(len(bodies))]

    return asyncio.run(main())


def script(upstream: ScriptedUpstream, data: bytes, then: str = "keep") -> None:
    upstream.reply("m", b"")
    scripted: Script = upstream.scripts["m"]
    scripted.data, scripted.then = data, then


def test_request_is_sent_unchanged(upstream: ScriptedUpstream) -> None:
    body = b'{"model":"m" ,"n":1.10, "n":2, "text":"\xc3\xa9\\u00e9"}'
    head = "X-Request-Id: req_1\r\n"
    upstream.reply("m", b'{"usage":{"input_tokens":1,"output_tokens":2}}', head=head)
    [outcome] = ask(upstream.url + "/v1/", body, api_key="secret")
    assert outcome == Answered(
        200, b'{"usage":{"input_tokens":1,"output_tokens":2}}', "req_1", Usage(1, 2)
    )
    [(sent, received)] = upstream.requests
    assert received == body
    lines = sent.decode().split("\r\n")
    assert lines[0] == f"POST {CHAT} HTTP/1.1"
    assert "Authorization: Bearer secret" in lines
    assert "Content-Type: application/json" in lines


@pytest.mark.parametrize(
    ("trace", "fields"),
    [
        pytest.param(None, [], id="none"),
        pytest.param(
            TraceContext("a" * 32, "b" * 16, True, "vendor=1"),
            [f"traceparent: 00-{'a' * 32}-{'b' * 16}-01", "tracestate: vendor=1"],
            id="with state",
        ),
        pytest.param(
            TraceContext("a" * 32, "b" * 16, False),
            [f"traceparent: 00-{'a' * 32}-{'b' * 16}-00"],
            id="without state",
        ),
    ],
)
def test_request_carries_trace_context(
    upstream: ScriptedUpstream, trace: TraceContext | None, fields: list[str]
) -> None:
    async def main() -> None:
        engine = UpstreamEngine(upstream.url)
        request = EngineRequest(0, CHAT, b'{"model":"m"}', 1, spot=False, trace=trace)
        async for _ in engine.run([request]):
            pass
        await engine.close()

    asyncio.run(main())
    [(sent, body)] = upstream.requests
    assert body == b'{"model":"m"}'
    assert [line for line in sent.decode().split("\r\n") if line.startswith("trace")] == fields


def test_no_authorization_header_without_key(upstream: ScriptedUpstream) -> None:
    ask(upstream.url, b'{"model":"m"}')
    assert b"authorization" not in upstream.requests[0][0].lower()


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("12", 12, 12), ("Fri, 31 Dec 2999 23:59:59 GMT", 1e9, 1e11), ("never", None, None)],
)
def test_retry_after_of_429_is_read(
    upstream: ScriptedUpstream, value: str, low: float | None, high: float
) -> None:
    body = b'{"error":{"message":"slow down"}}'
    upstream.reply("m", body, status="429 Too Many", head=f"retry-after: {value}\r\n")
    [outcome] = ask(upstream.url, b'{"model":"m"}')
    assert isinstance(outcome, Answered)
    assert (outcome.status_code, outcome.body) == (429, body)
    if low is None:
        assert outcome.retry_after is None
    else:
        assert outcome.retry_after is not None
        assert low <= outcome.retry_after <= high


@pytest.mark.parametrize("status", [302, 404, 500, 503])
def test_non_json_error_body_is_wrapped_in_json(upstream: ScriptedUpstream, status: int) -> None:
    upstream.reply("m", b"<h1>no</h1>", status=f"{status} Oops", head="Location: /elsewhere\r\n")
    [outcome] = ask(upstream.url, b'{"model":"m"}')
    assert isinstance(outcome, Answered)
    assert outcome.status_code == status
    assert json.loads(outcome.body)["error"]["message"] == "<h1>no</h1>"
    assert len(upstream.requests) == 1


OK = b"HTTP/1.1 200 OK\r\n"
FAULTS = {
    "closed before the head": (b"", "close", "connection_error"),
    "closed in the head": (OK + b"Content-Le", "close", "connection_lost"),
    "closed in the body": (OK + b'Content-Length: 50\r\n\r\n{"a":1}', "close", "connection_lost"),
    "closed in a chunk": (
        OK + b'Transfer-Encoding: chunked\r\n\r\n7\r\n{"a":1}\r\n',
        "close",
        "connection_lost",
    ),
    "cut short without a length": (
        OK + b'Connection: close\r\n\r\n{"a":',
        "close",
        "invalid_response",
    ),
    "bad chunk size": (
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        "keep",
        "invalid_response",
    ),
    "not HTTP": (b"SSH-2.0-OpenSSH\r\n", "keep", "invalid_response"),
    "not JSON": (OK + b"Content-Length: 2\r\n\r\nhi", "keep", "invalid_response"),
    "no body": (b"HTTP/1.1 204 No Content\r\n\r\n", "keep", "invalid_response"),
    "another protocol": (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "close",
        "invalid_response",
    ),
    "hangs": (b"", "hang", "timeout"),
    "hangs in the body": (OK + b'Content-Length: 50\r\n\r\n{"a"', "hang", "timeout"),
    "over the size limit": (
        OK + b"Content-Length: 9000000\r\n\r\n" + b"[" * 70_000,
        "hang",
        "response_too_large",
    ),
}


@pytest.mark.parametrize(("data", "then", "code"), FAULTS.values(), ids=FAULTS.keys())
def test_faulty_reply_does_not_affect_other_requests(
    upstream: ScriptedUpstream, data: bytes, then: str, code: str
) -> None:
    script(upstream, data, then)
    outcomes = ask(
        upstream.url,
        b'{"model":"fine"}',
        b'{"model":"m"}',
        b'{"model":"fine"}',
        timeout=0.3,
        concurrency=1,
        max_response_bytes=65_536,
    )
    assert isinstance(outcomes[1], Unanswered), outcomes[1]
    assert (outcomes[1].code, bool(outcomes[1].message)) == (code, True)
    assert all(isinstance(each, Answered) for each in (outcomes[0], outcomes[2]))


REPLIES = {
    "chunked": OK + b'Transfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n',
    "until close": OK + b'Connection: close\r\n\r\n{"a":1}',
    "after 100 and 103": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    + OK
    + b'Content-Length: 7\r\n\r\n{"a":1}',
    "HTTP/1.0": b'HTTP/1.0 200 OK\r\n\r\n{"a":1}',
}


@pytest.mark.parametrize("data", REPLIES.values(), ids=REPLIES.keys())
def test_every_message_framing_is_read(upstream: ScriptedUpstream, data: bytes) -> None:
    script(upstream, data, "keep" if b"ength" in data or b"chunked" in data else "close")
    outcomes = ask(upstream.url, *[b'{"model":"m"}'] * 3, concurrency=1)
    assert outcomes == [Answered(200, b'{"a":1}')] * 3


TEXT = b'{"a":1}'
_RAW = zlib.compressobj(wbits=-15)
ENCODED = {
    "gzip": ("gzip", gzip.compress(TEXT)),
    "gzip, upper case": ("GZIP", gzip.compress(TEXT)),
    "x-gzip": ("x-gzip", gzip.compress(TEXT)),
    "two gzip members": ("gzip", gzip.compress(TEXT[:3]) + gzip.compress(TEXT[3:])),
    "deflate": ("deflate", zlib.compress(TEXT)),
    "deflate without its wrapper": ("deflate", _RAW.compress(TEXT) + _RAW.flush()),
    "identity": ("identity", TEXT),
    "an empty field": ("", TEXT),
}


@pytest.mark.parametrize(("coding", "body"), ENCODED.values(), ids=ENCODED.keys())
@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
def test_encoded_replies_are_decoded(
    upstream: ScriptedUpstream, coding: str, body: bytes, status: str
) -> None:
    upstream.reply("m", body, status=status, head=f"Content-Encoding: {coding}\r\n")
    outcomes = ask(upstream.url, *[b'{"model":"m"}'] * 3, concurrency=1)
    assert outcomes == [Answered(int(status[:3]), b'{"a":1}')] * 3


def test_encoded_reply_is_decoded_from_small_chunks(upstream: ScriptedUpstream) -> None:
    encoded = gzip.compress(TEXT)
    chunks = b"".join(b"1\r\n%b\r\n" % encoded[at : at + 1] for at in range(len(encoded)))
    head = b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    script(upstream, OK + head + chunks + b"0\r\n\r\n")
    assert ask(upstream.url, b'{"model":"m"}') == [Answered(200, b'{"a":1}')]


BOMB = gzip.compress(b"[" * 50_000_000)
UNDECODABLE = {
    "a bomb": ("gzip", BOMB, "response_too_large"),
    "cut short": ("gzip", gzip.compress(TEXT)[:-9], "invalid_response"),
    "damaged": ("gzip", gzip.compress(TEXT)[:-8] + b"\0" * 8, "invalid_response"),
    "not encoded": ("gzip", TEXT, "invalid_response"),
    "empty": ("gzip", b"", "invalid_response"),
    "an unknown coding": ("br", TEXT, "invalid_response"),
    "two codings": ("gzip, gzip", gzip.compress(gzip.compress(TEXT)), "invalid_response"),
}


@pytest.mark.parametrize(("coding", "body", "code"), UNDECODABLE.values(), ids=UNDECODABLE.keys())
def test_undecodable_reply_is_no_answer(
    upstream: ScriptedUpstream, coding: str, body: bytes, code: str
) -> None:
    upstream.reply("m", body, head=f"Content-Encoding: {coding}\r\n")
    bodies = [b'{"model":"fine"}', b'{"model":"m"}', b'{"model":"fine"}']
    first, outcome, last = ask(upstream.url, *bodies, concurrency=1, max_response_bytes=65_536)
    assert isinstance(outcome, Unanswered), outcome
    assert (outcome.code, bool(outcome.message)) == (code, True)
    assert isinstance(first, Answered)
    assert isinstance(last, Answered)


def test_request_accepts_only_identity_encoding(upstream: ScriptedUpstream) -> None:
    ask(upstream.url, b'{"model":"m"}')
    assert b"\r\nAccept-Encoding: identity\r\n" in upstream.requests[0][0]


@pytest.mark.parametrize("status", ["307 Temporary Redirect", "308 Permanent Redirect"])
@pytest.mark.parametrize("target", ["{url}{path}/", "{path}/", "//127.0.0.1:{port}{path}/"])
def test_redirect_to_trailing_slash_is_followed(
    upstream: ScriptedUpstream, status: str, target: str
) -> None:
    port = upstream.url.rpartition(":")[2]
    location = target.format(url=upstream.url, path=CHAT, port=port)
    upstream.redirects[CHAT.encode()] = f"{status}\r\nLocation: {location}"
    body = b'{"model":"m"}'
    [outcome] = ask(upstream.url, body)
    assert isinstance(outcome, Answered)
    assert outcome.status_code == 200
    assert [(head.split()[1], sent) for head, sent in upstream.requests] == [
        (CHAT.encode(), body),
        (CHAT.encode() + b"/", body),
    ]


@pytest.mark.parametrize(
    "head",
    [
        "307 T\r\nLocation: {url}/elsewhere",
        "307 T\r\nLocation: http://other.invalid{path}/",
        "307 T\r\nLocation: https://127.0.0.1:{port}{path}/",
        "307 T\r\nLocation: http://127.0.0.1:1{path}/",
        "307 T\r\nLocation: {url}{path}/?a=1",
        "307 T\r\nLocation: {url}{path}",
        "307 T\r\nLocation: {url}{path}//",
        "307 T\r\nLocation: http://[",
        "307 T\r\nLocation:",
        "307 T",
        "301 M\r\nLocation: {url}{path}/",
        "302 F\r\nLocation: {url}{path}/",
    ],
)
def test_no_other_redirect_is_followed(upstream: ScriptedUpstream, head: str) -> None:
    port = upstream.url.rpartition(":")[2]
    upstream.redirects[CHAT.encode()] = head.format(url=upstream.url, path=CHAT, port=port)
    [outcome] = ask(upstream.url, b'{"model":"m"}')
    assert isinstance(outcome, Answered)
    assert outcome.status_code == int(head[:3])
    assert len(upstream.requests) == 1


def test_redirect_is_followed_once(upstream: ScriptedUpstream) -> None:
    for path, other in ((CHAT, CHAT + "/"), (CHAT + "/", CHAT)):
        upstream.redirects[path.encode()] = f"307 T\r\nLocation: {other}"
    [outcome] = ask(upstream.url, b'{"model":"m"}')
    assert isinstance(outcome, Answered)
    assert (outcome.status_code, len(upstream.requests)) == (307, 2)


def test_surplus_reply_is_discarded(upstream: ScriptedUpstream) -> None:
    one = OK + b'Content-Length: 7\r\n\r\n{"a":1}'
    script(upstream, one + one.replace(b"1}", b"2}"))
    outcomes = ask(upstream.url, b'{"model":"m"}', b'{"model":"fine"}', concurrency=1)
    assert outcomes[0] == Answered(200, b'{"a":1}')
    assert isinstance(outcomes[1], Answered)
    assert b'"a":2' not in outcomes[1].body


def test_large_request_and_reply_arrive_whole(upstream: ScriptedUpstream) -> None:
    body = b'{"model":"m","text":"%b"}' % (b"x" * 3_000_000)
    upstream.reply("m", body)
    assert ask(upstream.url, body) == [Answered(200, body)]
    assert upstream.requests[0][1] == body


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_large_replies_stay_within_byte_budget(upstream: ScriptedUpstream, coding: str) -> None:
    body = b'{"model":"m","text":"%b"}' % (b"x" * 2_000_000)
    encoded = body if coding == "identity" else gzip.compress(body)
    upstream.reply("m", encoded, head=f"Content-Encoding: {coding}\r\n")
    budget = ByteBudget(5_000_000)
    peaks: list[int] = []
    take = budget.take

    def recording_take(size: int) -> None:
        take(size)
        peaks.append(budget.used)

    budget.take = recording_take  # type: ignore[method-assign]
    requests = [b'{"model":"m"}'] * 12
    outcomes = ask(upstream.url, *requests, concurrency=12, budget=budget)
    assert outcomes == [Answered(200, body)] * 12
    # Two whole replies at a time, and of each other one the bytes received before its pause.
    assert 4_000_000 < max(peaks) < 5_000_000 + 12 * 2 * 262_144
    assert budget.used == 0


def test_paused_reply_does_not_time_out(upstream: ScriptedUpstream) -> None:
    body = b'{"model":"m","text":"%b"}' % (b"x" * 8_000_000)
    upstream.reply("m", body)
    budget = ByteBudget(1_000_000)
    budget.take(1_000_000)

    async def main() -> list[Outcome]:
        engine = UpstreamEngine(upstream.url, timeout=1.0, budget=budget)
        requests = [EngineRequest(n, CHAT, b'{"model":"m"}', 1, spot=False) for n in range(2)]
        loop = asyncio.get_running_loop()
        outcomes = []
        async for group in engine.run(requests):
            outcomes += [outcome for _, outcome in group]
            if len(outcomes) == 1:
                # The other reply waits longer than its timeout, as this result is not written yet.
                written = asyncio.Event()
                budget.take(10_000_000)
                loop.call_later(1.2, written.set)
                await written.wait()
                budget.give(10_000_000)
        await engine.close()
        return outcomes

    assert asyncio.run(main()) == [Answered(200, body)] * 2


def test_oversized_content_length_fails_at_once(upstream: ScriptedUpstream) -> None:
    script(upstream, OK + b"Content-Length: 70000\r\n\r\n[", "hang")
    [outcome] = ask(upstream.url, b'{"model":"m"}', timeout=60, max_response_bytes=65_536)
    assert isinstance(outcome, Unanswered)
    assert outcome.code == "response_too_large"
    assert "LOWTIDE_MAX_RESPONSE_BYTES" in outcome.message
    assert not RetryPolicy().is_transient(outcome)


def test_connections_are_reused_and_limited(upstream: ScriptedUpstream) -> None:
    async def main() -> int:
        engine = UpstreamEngine(upstream.url, concurrency=4)
        body = b'{"model":"m"}'
        requests = [EngineRequest(n, CHAT, body, 1, spot=False) for n in range(20)]

        async def call() -> int:
            return sum([len(group) async for group in engine.run(requests)])

        counts = await asyncio.gather(call(), call(), call())
        await engine.close()
        return sum(counts)

    upstream.min_in_flight = 4
    assert asyncio.run(main()) == 60
    assert upstream.max_in_flight == 4
    assert upstream.connections == 4


def test_refused_connection_is_connection_error() -> None:
    [outcome] = ask(f"http://127.0.0.1:{free_port()}", b'{"model":"m"}')
    assert isinstance(outcome, Unanswered)
    assert outcome.code == "connection_error"


def test_unresolvable_host_is_dns_error() -> None:
    [outcome] = ask("http://engine.invalid", b'{"model":"m"}')
    assert isinstance(outcome, Unanswered)
    assert outcome.code == "dns_error"


def test_server_without_tls_is_tls_error(upstream: ScriptedUpstream) -> None:
    [outcome] = ask(upstream.url.replace("http:", "https:"), b'{"model":"m"}')
    assert isinstance(outcome, Unanswered)
    assert outcome.code == "tls_error"


def test_unsendable_path_is_reported(upstream: ScriptedUpstream) -> None:
    async def main() -> Outcome:
        engine = UpstreamEngine(upstream.url)
        request = EngineRequest(0, "/v1/🌊", b"{}", 1, spot=False)
        pairs = [pair async for group in engine.run([request]) for pair in group]
        await engine.close()
        return pairs[0][1]

    outcome = asyncio.run(main())
    assert isinstance(outcome, Unanswered)
    assert outcome.code == "request_not_sendable"
    assert upstream.requests == []


def test_closing_ends_running_calls(upstream: ScriptedUpstream) -> None:
    async def main() -> int:
        engine = UpstreamEngine(upstream.url)
        bodies = [b'{"model":"fine"}', b'{"model":"m"}']
        requests = [EngineRequest(n, CHAT, body, 1, spot=False) for n, body in enumerate(bodies)]
        count = 0
        async for group in engine.run(requests):
            count += len(group)
            await engine.close()
        return count

    script(upstream, b"", "hang")
    assert asyncio.run(main()) == 1


@pytest.mark.parametrize(
    ("status", "body", "names"),
    [
        ("200 OK", b'{"object":"list","data":[{"id":"a"},{"id":"b","x":1}]}', ["a", "b"]),
        ("200 OK", b'{"data":"?"}', []),
        ("200 OK", b"\xff", []),
        ("404 Not Found", b'{"data":[{"id":"a"}]}', []),
    ],
)
def test_models_are_read_leniently(
    upstream: ScriptedUpstream, status: str, body: bytes, names: list[str]
) -> None:
    async def main() -> list[str]:
        engine = UpstreamEngine(upstream.url)
        try:
            return list(await engine.models())
        finally:
            await engine.close()

    upstream.reply("models", body, status=status)
    assert asyncio.run(main()) == names


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://"])
def test_invalid_url_is_rejected(url: str) -> None:
    with pytest.raises(ValueError, match="must start with http"):
        UpstreamEngine(url)


def test_key_with_line_break_is_rejected() -> None:
    with pytest.raises(ValueError, match="printable"):
        UpstreamEngine("http://host", api_key="a\r\nX: y")


def probe(url: str, ping: Ping | None = None) -> Probed:
    async def main() -> Probed:
        engine = UpstreamEngine(url)
        try:
            return await engine.probe(ping)
        finally:
            await engine.close()

    return asyncio.run(main())


WELL, ANSWERS = Probed(well=True), Probed(well=True, answers=True)


@pytest.mark.parametrize(
    ("status", "body", "well"),
    [
        ("200 OK", b"", True),
        ("200 OK", b"fine", True),
        ("404 Not Found", b"{}", True),
        ("501 Unsupported", b"<h1>GET</h1>", True),
        ("429 Busy", b"{}", True),
        ("500 Oops", b"{}", False),
        ("503 Loading", b"{}", False),
        ("401 Unauthorized", b"{}", False),
    ],
)
def test_probe_reads_health_and_models(
    upstream: ScriptedUpstream, status: str, body: bytes, *, well: bool
) -> None:
    upstream.reply("models", body, status=status)
    probed = probe(upstream.url)
    assert probed.well is well
    assert bool(probed.reason) is not well
    paths = [head.split(b" ")[1] for head, _ in upstream.requests]
    count = 1 if status[:3] in {"500", "503"} else 2
    assert paths == [b"/health", b"/v1/models"][:count]


def test_probe_with_ping_sends_minimal_request(upstream: ScriptedUpstream) -> None:
    assert probe(upstream.url, Ping(CHAT, "m")) == ANSWERS
    sent = json.loads(upstream.requests[-1][1])
    assert sent == {
        "model": "m",
        "messages": [{"role": "user", "content": "ping"}],
        "max_tokens": 1,
    }


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        ("400 Bad", b'{"error":{"message":"no max_tokens"}}', WELL),
        ("429 Busy", b"{}", WELL),
        ("404 No", b'{"error":{"code":"model_not_found"}}', Probed(well=True, lacks_model=True)),
    ],
)
def test_refused_ping_leaves_engine_well(
    upstream: ScriptedUpstream, status: str, body: bytes, expected: Probed
) -> None:
    upstream.reply("m", body, status=status)
    assert probe(upstream.url, Ping(CHAT, "m")) == expected


@pytest.mark.parametrize("status", ["500 Oops", "503 Loading", "401 Unauthorized"])
def test_failed_ping_makes_engine_unwell(upstream: ScriptedUpstream, status: str) -> None:
    upstream.reply("m", b"{}", status=status)
    probed = probe(upstream.url, Ping(CHAT, "m"))
    assert not probed.well
    assert CHAT in probed.reason


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("403 No", b"{}"),
        ("401 No", b'{"error":{"message":"Missing scopes: api.model.read. Check that you"}}'),
    ],
)
def test_key_without_model_scope_leaves_engine_well(
    upstream: ScriptedUpstream, status: str, body: bytes
) -> None:
    upstream.reply("models", body, status=status)
    assert probe(upstream.url) == WELL
    assert probe(upstream.url, Ping(CHAT, "m")) == ANSWERS


def test_unreachable_engine_is_unwell() -> None:
    probed = probe("http://127.0.0.1:9")
    assert not probed.well
    assert "could not be reached" in probed.reason


def test_limit_is_enforced_and_raised(upstream: ScriptedUpstream) -> None:
    async def main() -> None:
        engine = UpstreamEngine(upstream.url, concurrency=8)
        engine.limit(0)
        requests = [EngineRequest(n, CHAT, b'{"model":"m"}', 1, spot=False) for n in range(20)]

        async def call() -> int:
            return sum([len(group) async for group in engine.run(requests)])

        waiting = asyncio.create_task(call())
        assert (await engine.probe()).well  # probes need no slot
        assert not [head for head, _ in upstream.requests if head.startswith(b"POST")]
        upstream.min_in_flight = 2
        engine.limit(2)
        assert await waiting == 20
        assert upstream.max_in_flight == 2
        engine.limit(99)
        upstream.min_in_flight = 8
        assert await call() == 20
        assert upstream.max_in_flight == 8
        await engine.close()

    asyncio.run(main())


METRICS = b"vllm:num_requests_running 7.0\nvllm:num_requests_waiting 2.0\n"


@pytest.mark.parametrize(
    ("status", "body", "load"),
    [
        ("200 OK", METRICS, EngineLoad(7, 2)),
        ("200 OK", b"# no metrics of an engine\n", None),
        ("404 Not Found", METRICS, None),
        ("501 Not Implemented", b"{}", None),
    ],
)
def test_load_is_read_from_the_upstreams_metrics(
    upstream: ScriptedUpstream, status: str, body: bytes, load: EngineLoad | None
) -> None:
    upstream.reply("models", body, status=status)
    assert asyncio.run(_load(upstream.url)) == load
    assert upstream.requests[0][0].startswith(b"GET /metrics ")


@pytest.mark.parametrize(
    ("data", "then"), [(b"", "hang"), (b"", "close"), (b"garbage\r\n", "hang")]
)
def test_load_of_bad_upstream_is_unknown(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, data: bytes, then: str
) -> None:
    monkeypatch.setattr("lowtide.engines.upstream._METRICS_TIMEOUT", 0.2)
    upstream.reply("models", b"")
    scripted = upstream.scripts["models"]
    scripted.data, scripted.then = data, then
    assert asyncio.run(_load(upstream.url)) is None


async def _load(url: str) -> EngineLoad | None:
    engine = UpstreamEngine(url)
    try:
        return await engine.load()
    finally:
        await engine.close()


def test_meter_sees_requests_in_flight_and_their_tokens(upstream: ScriptedUpstream) -> None:
    meter = LoadMeter()
    outcomes = ask(upstream.url, *[b'{"model":"m"}'] * 5, concurrency=2, meter=meter)
    assert all(isinstance(outcome, Answered) for outcome in outcomes)
    interval = meter.take()
    assert (interval.answers, interval.work, interval.at_end) == (5, 20.0, 0)
    assert 0 < interval.latency <= 2 * interval.seconds
