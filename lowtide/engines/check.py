"""A check of what an OpenAI-compatible engine supports.

The engine is asked what it says of itself (vLLM, SGLang and llama.cpp each have paths of their own),
and sent one minimal request per endpoint, and one with a JSON schema.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx
import msgspec

from lowtide.engines.model import Ping
from lowtide.engines.telemetry import engine_of, samples

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


_LONGEST_REPLY: Final = 4 << 20
_CHAT: Final = "/v1/chat/completions"
_SCHEMA_TOKENS: Final = 64
_SCHEMA: Final = {
    "type": "object",
    "properties": {"checked": {"type": "boolean"}},
    "required": ["checked"],
    "additionalProperties": False,
}
_OWNERS: Final = {"vllm": "vLLM", "sglang": "SGLang", "llamacpp": "llama.cpp"}
_ABSENT: Final = frozenset({404, 405, 501})
_KEY_REFUSED: Final = frozenset({401, 403})


class EngineUnusable(Exception):
    """An engine that does not answer, refuses the key, or speaks another protocol."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model, and its max tokens of request and answer together, if known."""

    name: str
    context: int | None


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What an engine supports; None where it does not say.

    `endpoints` maps each endpoint to the reason why it does not work, empty if it does.
    `max_running` counts requests that run at once, `token_seconds` is the measured time per token of
    a single answer.
    """

    url: str
    kind: str | None
    version: str | None
    models: Sequence[ServedModel]
    endpoints: Mapping[str, str]
    structured_output: bool | None
    prefix_caching: bool | None
    max_running: int | None
    takes_images: bool | None
    token_seconds: float | None

    @property
    def usable(self) -> bool:
        """True if any endpoint works."""
        return "" in self.endpoints.values()

    def serves(self, models: Collection[str]) -> bool:
        """Return whether the engine lists all these models."""
        return {model.name for model in self.models}.issuperset(models)


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    body: bytes
    seconds: float

    def json(self) -> dict[str, Any]:
        """Return the object of a successful answer; empty for anything else."""
        if self.status != 200:
            return {}
        try:
            return msgspec.json.decode(self.body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeError):
            return {}


class _Client:
    """Requests with a deadline each and answers of bounded size."""

    def __init__(self, url: str, key: str, timeout: float) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = timeout
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False)

    def get(self, path: str) -> _Reply:
        """Send a GET request; raises EngineUnusable without an answer in time."""
        return self._send("GET", path, None)

    def post(self, path: str, body: bytes) -> _Reply:
        """Send a JSON request; raises EngineUnusable without an answer in time."""
        return self._send("POST", path, body)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _send(self, method: str, path: str, body: bytes | None) -> _Reply:
        began = time.monotonic()
        headers = {} if body is None else {"Content-Type": "application/json"}
        received = bytearray()
        try:
            with self._http.stream(method, path, content=body, headers=headers) as response:
                for piece in response.iter_bytes():
                    received += piece
                    if len(received) > _LONGEST_REPLY:
                        raise EngineUnusable(f"{method} {path}: the answer is over 4 MiB.")
                    if time.monotonic() - began > self._timeout:
                        raise httpx.ReadTimeout("too slow")
        except httpx.TimeoutException as error:
            raise EngineUnusable(f"{method} {path}: no answer in {self._timeout:g} s.") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EngineUnusable(f"{method} {path}: {error or type(error).__name__}.") from error
        return _Reply(response.status_code, bytes(received), time.monotonic() - began)


def check_engine(
    url: str, key: str, endpoints: Collection[str], *, timeout: float = 10.0
) -> EngineReport:
    """Ask an engine what it supports, and try `endpoints`; `timeout` is in seconds per request.

    Raises EngineUnusable.
    """
    client = _Client(url.rstrip("/").removesuffix("/v1"), key, timeout)
    try:
        listed = _models(client)
        facts = _Facts.of(client, listed)
        models = [
            ServedModel(each["id"], _number(each.get("max_model_len")) or facts.context_of(each))
            for each in listed
        ]
        model = models[0].name if models else None
        tried = {endpoint: _try(client, Ping(endpoint, model)) for endpoint in endpoints}
        structured, token_seconds = (
            _structured_output(client, model) if tried.get(_CHAT) == "" else (None, None)
        )
        return EngineReport(
            url,
            facts.kind,
            facts.version,
            models,
            tried,
            structured,
            facts.prefix_caching,
            facts.max_running,
            facts.takes_images,
            token_seconds,
        )
    finally:
        client.close()


def _models(client: _Client) -> list[dict[str, Any]]:
    reply = client.get("/v1/models")
    if reply.status in _KEY_REFUSED:
        raise EngineUnusable(
            f"GET /v1/models: {reply.status}, the key is refused: set LOWTIDE_ENGINE_API_KEY."
        )
    listed = reply.json().get("data")
    if not isinstance(listed, list):
        raise EngineUnusable(
            f"GET /v1/models: {reply.status} without a list of models; is this the base URL of an "
            "OpenAI-compatible server?"
        )
    return [each for each in listed if isinstance(each, dict) and isinstance(each.get("id"), str)]


@dataclass(frozen=True, slots=True)
class _Facts:
    """What an engine says of itself on the paths of vLLM, SGLang and llama.cpp."""

    kind: str | None
    version: str | None
    info: Mapping[str, Any]
    model_info: Mapping[str, Any]
    props: Mapping[str, Any]
    metrics: bytes

    @classmethod
    def of(cls, client: _Client, listed: Sequence[Mapping[str, Any]]) -> _Facts:
        metrics = client.get("/metrics")
        text = metrics.body if metrics.status == 200 else b""
        owners = [_OWNERS.get(str(each.get("owned_by")).lower()) for each in listed]
        kind = next(filter(None, owners), None)
        # A gateway may rename the owner, and passes on the metrics.
        kind = kind or engine_of(text)
        # vLLM has it in its development mode; SGLang renamed its own.
        info = client.get("/server_info").json() or client.get("/get_server_info").json()
        model_info = client.get("/model_info").json() or client.get("/get_model_info").json()
        props = client.get("/props").json()
        version = (
            client.get("/version").json().get("version")
            or info.get("version")
            or props.get("build_info")
        )
        return cls(
            kind, version if isinstance(version, str) else None, info, model_info, props, text
        )

    def context_of(self, model: Mapping[str, Any]) -> int | None:
        """Return the context of a model; llama.cpp divides its own among its slots."""
        settings = self.props.get("default_generation_settings")
        slot = settings.get("n_ctx") if isinstance(settings, dict) else None
        meta = model.get("meta")
        return _number(slot) or (_number(meta.get("n_ctx")) if isinstance(meta, dict) else None)

    @property
    def prefix_caching(self) -> bool | None:
        """True if requests with a common beginning share its computation."""
        if isinstance(disabled := self.info.get("disable_radix_cache"), bool):
            return not disabled
        infos = samples(self.metrics, (b"vllm:cache_config_info",))
        values = [info.label(b"enable_prefix_caching") for info in infos]
        value = next(filter(None, values), None)
        return None if value is None else value.lower() == "true"

    @property
    def takes_images(self) -> bool | None:
        """True if requests may have images."""
        modalities = self.props.get("modalities")
        value = (
            modalities.get("vision")
            if isinstance(modalities, dict)
            else self.model_info.get("has_image_understanding")
        )
        return value if isinstance(value, bool) else None

    @property
    def max_running(self) -> int | None:
        """The max number of requests that run at once."""
        config = self.info.get("vllm_config")
        scheduler = config.get("scheduler_config") if isinstance(config, dict) else None
        states = self.info.get("internal_states")
        state = states[0] if isinstance(states, list) and states else None
        return (
            (_number(scheduler.get("max_num_seqs")) if isinstance(scheduler, dict) else None)
            or _number(self.info.get("max_running_requests"))
            or (
                _number(state.get("effective_max_running_requests_per_dp"))
                if isinstance(state, dict)
                else None
            )
            or _number(self.props.get("total_slots"))
        )


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _try(client: _Client, ping: Ping) -> str:
    """Send a minimal request; return why it failed, empty if it did not."""
    body = ping.body()
    if body is None:
        return "not tried"
    try:
        reply = client.post(ping.endpoint, body)
    except EngineUnusable as error:
        return str(error)
    if reply.status == 200:
        return ""
    if reply.status in _ABSENT:
        return f"{reply.status}, not served"
    text = reply.body.decode(errors="replace")[:200].strip()
    return f"{reply.status}: {text}" if text else str(reply.status)


def _structured_output(client: _Client, model: str | None) -> tuple[bool | None, float | None]:
    """Return whether an answer follows a JSON schema that nothing else asks for, and its pace."""
    request = {
        "model": model,
        "messages": [{"role": "user", "content": "Say hello in one word."}],
        "max_tokens": _SCHEMA_TOKENS,
        "temperature": 0,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "check", "strict": True, "schema": _SCHEMA},
        },
    }
    reply = client.post(_CHAT, msgspec.json.encode(request))
    if reply.status != 200:
        return False, None
    answer = reply.json()
    try:
        choice, tokens = answer["choices"][0], answer["usage"]["completion_tokens"]
        content, finish = choice["message"]["content"], choice["finish_reason"]
    except (KeyError, IndexError, TypeError):
        return None, None
    pace = reply.seconds / tokens if isinstance(tokens, int) and tokens > 0 else None
    if finish == "length":
        # A model that thinks first has not come to its answer.
        return None, pace
    try:
        return isinstance(msgspec.json.decode(content)["checked"], bool), pace
    except (msgspec.DecodeError, KeyError, TypeError):
        return False, pace
