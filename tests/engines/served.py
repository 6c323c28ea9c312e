"""HTTP servers that answer as engines do; the shapes are those of their sources and documentation."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Routes = Mapping[str, object]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"


def chat(content: str, *, finish: str = "stop", tokens: int = 8) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content},
                "finish_reason": finish,
            }
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": tokens, "total_tokens": 12 + tokens},
    }


STRUCTURED = {CHAT: chat('{"checked": true}'), COMPLETIONS: {"object": "text_completion"}}

VLLM: Routes = STRUCTURED | {
    "/v1/models": {
        "object": "list",
        "data": [
            {
                "id": "my-model",
                "object": "model",
                "created": 1790000000,
                "owned_by": "vllm",
                "root": "Qwen/Qwen2.5-7B-Instruct",
                "parent": None,
                "max_model_len": 32768,
                "permission": [],
            }
        ],
    },
    "/version": {"version": "0.20.0"},
    "/metrics": (
        "# HELP vllm:num_requests_waiting Number of requests waiting to be processed.\n"
        "# TYPE vllm:num_requests_waiting gauge\n"
        'vllm:num_requests_waiting{engine="0",model_name="my-model"} 0.0\n'
        "# TYPE vllm:cache_config_info gauge\n"
        'vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="True",'
        'engine="0",gpu_memory_utilization="0.9",num_gpu_blocks="27969"} 1.0\n'
    ),
}
VLLM_IN_DEVELOPMENT: Routes = {
    **VLLM,
    "/server_info": {"vllm_config": {"scheduler_config": {"max_num_seqs": 256}}},
}
SGLANG: Routes = STRUCTURED | {
    "/v1/models": {
        "object": "list",
        "data": [
            {
                "id": "qwen",
                "object": "model",
                "created": 1790000000,
                "owned_by": "sglang",
                "root": "qwen",
                "max_model_len": 131072,
            }
        ],
    },
    "/get_server_info": {
        "model_path": "Qwen/Qwen2.5-7B-Instruct",
        "context_length": None,
        "disable_radix_cache": True,
        "max_running_requests": None,
        "version": "0.5.4",
        "internal_states": [{"effective_max_running_requests_per_dp": 48}],
    },
    "/get_model_info": {"model_path": "Qwen/Qwen2.5-7B", "has_image_understanding": True},
}
LLAMA_CPP: Routes = STRUCTURED | {
    "/v1/models": {
        "object": "list",
        "models": [{"name": "qwen.gguf", "type": "model", "capabilities": ["completion"]}],
        "data": [
            {
                "id": "qwen.gguf",
                "object": "model",
                "created": 1790000000,
                "owned_by": "llamacpp",
                "meta": {"n_vocab": 151936, "n_ctx": 16384, "n_ctx_train": 32768},
            }
        ],
    },
    "/props": {
        "default_generation_settings": {"id": 0, "n_ctx": 4096, "params": {"n_predict": -1}},
        "total_slots": 4,
        "model_path": "/models/qwen.gguf",
        "modalities": {"vision": False, "audio": False},
        "build_info": "b6900-abc123",
    },
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, routes: Routes, key: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.routes = routes
        self.key = key
        self.hangs = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            self.reply(401, {"error": "Unauthorized"})
            return
        answer = self.server.routes.get(self.path, (404, {"detail": "Not Found"}))
        if answer == "hang":
            self.server.hangs.wait()
        elif isinstance(answer, tuple):
            self.reply(*answer)
        else:
            self.reply(200, answer)

    do_GET = do_POST = answer  # noqa: N815

    def reply(self, status: int, answer: object) -> None:
        body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(routes: Routes, *, key: str = "") -> Iterator[str]:
    """Serve routes from path to answer; yield the base URL.

    An answer is an object, a text, a status with one of these, or `hang`. With a `key`, others are
    refused.
    """
    with _Server(routes, key) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.hangs.set()
            server.shutdown()
            thread.join()
