from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from lowtide.cli.main import app
from lowtide.engines.check import EngineReport, EngineUnusable, ServedModel, check_engine
from lowtide.engines.fit import misfits
from lowtide.settings import PREFIX, Settings
from tests.engines.served import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    LLAMA_CPP,
    SGLANG,
    VLLM,
    VLLM_IN_DEVELOPMENT,
    chat,
    serving,
)

if TYPE_CHECKING:
    from tests.engines.served import Routes

ENDPOINTS = (CHAT, COMPLETIONS, EMBEDDINGS)


def check(routes: Routes, **options: Any) -> EngineReport:
    with serving(routes) as url:
        return check_engine(url, "", ENDPOINTS, **options)


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        (VLLM, ("vLLM", "0.20.0", "my-model", 32768, True, None, None)),
        (VLLM_IN_DEVELOPMENT, ("vLLM", "0.20.0", "my-model", 32768, True, 256, None)),
        (SGLANG, ("SGLang", "0.5.4", "qwen", 131072, False, 48, True)),
        (LLAMA_CPP, ("llama.cpp", "b6900-abc123", "qwen.gguf", 4096, None, 4, False)),
    ],
    ids=["vllm", "vllm-development", "sglang", "llama.cpp"],
)
def test_report_has_what_the_engine_says(routes: Routes, expected: tuple[Any, ...]) -> None:
    report = check(routes)
    ((name, context),) = [(model.name, model.context) for model in report.models]
    assert (
        report.kind,
        report.version,
        name,
        context,
        report.prefix_caching,
        report.max_running,
        report.takes_images,
    ) == expected
    assert report.endpoints == {CHAT: "", COMPLETIONS: "", EMBEDDINGS: "404, not served"}
    assert report.structured_output is True
    assert report.token_seconds is not None
    assert report.usable


def test_gateway_is_known_by_its_metrics() -> None:
    models = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "acme"}]}
    report = check({**VLLM, "/v1/models": models})
    assert (report.kind, report.models) == ("vLLM", [ServedModel("m", None)])


@pytest.mark.parametrize(
    ("answer", "supported"),
    [
        (chat('{"checked": false}'), True),
        (chat("Hello!"), False),
        (chat('{"other": 1}'), False),
        (chat("<think>Well", finish="length"), None),
        ({"unexpected": "shape"}, None),
    ],
    ids=["follows", "ignores", "other-object", "cut-off", "no-choices"],
)
def test_structured_output_is_tried(answer: object, supported: bool | None) -> None:
    assert check({**VLLM, CHAT: answer}).structured_output is supported


def test_failing_endpoint_is_quoted() -> None:
    report = check({**VLLM, COMPLETIONS: (400, {"error": {"message": "no completions here"}})})
    assert report.endpoints[COMPLETIONS].startswith("400: ")
    assert "no completions here" in report.endpoints[COMPLETIONS]


def test_base_url_may_end_in_v1() -> None:
    with serving(VLLM) as url:
        assert check_engine(f"{url}/v1/", "", ENDPOINTS).usable


@pytest.mark.parametrize(
    "routes",
    [
        {},
        {"/v1/models": "<html>Welcome</html>"},
        {"/v1/models": {"models": ["a"]}},
        {"/v1/models": (503, {"error": "loading"})},
    ],
    ids=["no-paths", "a-page", "other-json", "loading"],
)
def test_server_that_is_no_engine_is_refused(routes: Routes) -> None:
    with pytest.raises(EngineUnusable, match="OpenAI-compatible server"):
        check(routes)


def test_odd_answers_on_other_paths_are_ignored() -> None:
    odd = {"/metrics": "<html>", "/server_info": "[1]", "/props": "{", "/version": "v1"}
    report = check({**LLAMA_CPP, **odd})
    assert (report.kind, report.version, report.max_running) == ("llama.cpp", None, None)


def test_endless_answer_is_given_up() -> None:
    with pytest.raises(EngineUnusable, match="over 4 MiB"):
        check({"/v1/models": "x" * (5 << 20)})


@pytest.mark.parametrize("path", ["/v1/models", "/metrics"])
def test_hanging_engine_is_given_up(path: str) -> None:
    began = time.monotonic()
    with pytest.raises(EngineUnusable, match=f"{path}: no answer in 0.2 s"):
        check({**VLLM, path: "hang"}, timeout=0.2)
    assert time.monotonic() - began < 10


def test_hanging_endpoint_is_part_of_the_report() -> None:
    report = check({**VLLM, CHAT: "hang"}, timeout=0.2)
    assert "no answer in 0.2 s" in report.endpoints[CHAT]
    assert report.endpoints[COMPLETIONS] == ""
    assert report.structured_output is None


def test_unreachable_engine_is_reported() -> None:
    with serving(VLLM) as url:
        pass
    with pytest.raises(EngineUnusable, match="GET /v1/models"):
        check_engine(url, "", ENDPOINTS)


def test_key_is_sent_with_every_request() -> None:
    with serving(VLLM, key="secret") as url:
        assert check_engine(url, "secret", ENDPOINTS).prefix_caching is True
        with pytest.raises(EngineUnusable, match=r"401.*LOWTIDE_ENGINE_API_KEY"):
            check_engine(url, "wrong", ENDPOINTS)


REPORT = EngineReport(
    url="http://e",
    kind="vLLM",
    version="1",
    models=[ServedModel("a", 4096)],
    endpoints={CHAT: ""},
    structured_output=True,
    prefix_caching=True,
    max_running=32,
    takes_images=True,
    token_seconds=0.01,
)


def changed(**changes: Any) -> EngineReport:
    fields = {name: getattr(REPORT, name) for name in EngineReport.__slots__}
    return EngineReport(**fields | changes)


@pytest.mark.parametrize(
    ("report", "settings", "models", "expected"),
    [
        (REPORT, {}, ["a"], {}),
        (
            changed(max_running=64),
            {"worker_concurrency": 32},
            [],
            {"LOWTIDE_WORKER_CONCURRENCY": "stays idle. Set it to auto"},
        ),
        (
            changed(max_running=8),
            {"worker_concurrency": 32},
            [],
            {"LOWTIDE_WORKER_CONCURRENCY": "more wait in the engine"},
        ),
        (changed(max_running=64), {}, [], {}),
        (changed(max_running=None), {"worker_concurrency": 7}, [], {}),
        (REPORT, {"spot_replicas": 3}, [], {"LOWTIDE_SPOT_REPLICAS": "3 workers share"}),
        (REPORT, {"dedicated_replicas": 1}, [], {}),
        (REPORT, {}, ["a", "b"], {"model": "b is not served; served: a"}),
        (
            changed(endpoints={CHAT: "", EMBEDDINGS: "404, not served"}),
            {},
            [],
            {"LOWTIDE_ENDPOINTS": f"set it to {CHAT}"},
        ),
        (changed(endpoints={CHAT: "500"}), {}, [], {"LOWTIDE_ENDPOINTS": "no endpoint works"}),
        (changed(token_seconds=1.0), {}, [], {"LOWTIDE_ENGINE_TIMEOUT": "about 4,096 s"}),
        (changed(token_seconds=1.0), {"engine_timeout": 5000}, [], {}),
        (changed(takes_images=None), {}, [], {"LOWTIDE_MAX_LINE_BYTES": "set it to 32768"}),
        (changed(takes_images=False), {"max_line_bytes": 32768}, [], {}),
        (changed(models=[ServedModel("a", None)], takes_images=None), {}, [], {}),
    ],
)
def test_settings_that_do_not_fit(
    report: EngineReport, settings: dict[str, Any], models: list[str], expected: dict[str, str]
) -> None:
    found = {each.setting: each.text for each in misfits(report, Settings(**settings), models)}
    assert found.keys() == expected.keys()
    for setting, part in expected.items():
        assert part in found[setting]


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def run(*arguments: str, exit_code: int = 0, **settings: str) -> str:
    environment = {f"{PREFIX}{name}": value for name, value in settings.items()}
    result = CliRunner().invoke(
        app, ("engines", "check", *arguments), env={"COLUMNS": "200", **environment}
    )
    assert result.exit_code == exit_code, result.output
    return result.output


def test_command_prints_report_and_misfits() -> None:
    with serving(LLAMA_CPP) as url:
        output = run(ENGINE_URL=url, ENDPOINTS=f"{CHAT},{EMBEDDINGS}", WORKER_CONCURRENCY="32")
        assert "llama.cpp b6900-abc123" in output
        assert "LOWTIDE_WORKER_CONCURRENCY: 32 requests in flight" in output
        printed = json.loads(run(url, "--json", ENDPOINTS=CHAT))
    assert printed["models"] == [{"name": "qwen.gguf", "context": 4096}]
    assert printed["endpoints"] == {CHAT: ""}
    assert [each["setting"] for each in printed["misfits"]] == ["LOWTIDE_MAX_LINE_BYTES"]


def test_command_fails_for_unusable_engine_or_missing_model() -> None:
    with serving(VLLM, key="k") as url:
        assert "LOWTIDE_ENGINE_API_KEY" in run(url, exit_code=1)
        run(url, "--model", "my-model", ENGINE_API_KEY="k")
        output = run(url, "--model", "other", exit_code=1, ENGINE_API_KEY="k")
        assert "other is not served; served: my-model" in output
        run(url, exit_code=1, ENGINE_API_KEY="k", ENDPOINTS=EMBEDDINGS)
