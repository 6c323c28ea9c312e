"""A llama.cpp server with a tiny model of random weights: `python llama_server.py MODEL PORT`.

It runs in the environment that `make llama` installs. Engine, tokenizer, template, sampling and HTTP
server are llama.cpp's own; the model writes noise, a token per character. MODEL is the file to
write the model to, unless it exists.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

NAME = "tiny"
CONTEXT = 512
"""Tokens of a request and its answer, in each of the slots."""
SLOTS = 2
WIDTH, LAYERS, HEADS, FEED_FORWARD = 64, 2, 4, 128
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)


def vocabulary() -> list[tuple[str, int]]:
    """Return the tokens and their types: control, bytes, and characters of ASCII."""
    kinds = gguf.TokenType
    control = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
    return [
        ("<unk>", kinds.UNKNOWN),
        *((token, kinds.CONTROL) for token in control),
        *((f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)),
        *((character, kinds.NORMAL) for character in ("\u2581", *map(chr, range(33, 127)))),
    ]


def write_model(path: Path) -> None:
    """Write a Llama of 128,000 random weights."""
    tokens = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    add_weights(writer, len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_weights(writer: gguf.GGUFWriter, tokens: int) -> None:
    """Add the same random weights at every call."""
    rng = np.random.default_rng(1)

    def add(name: str, *shape: int) -> None:
        values = rng.standard_normal(shape) * 0.3 if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    add("token_embd", tokens, WIDTH)
    add("output", tokens, WIDTH)
    add("output_norm", WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        add(f"{block}attn_norm", WIDTH)
        add(f"{block}ffn_norm", WIDTH)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(block + part, WIDTH, WIDTH)
        add(f"{block}ffn_gate", FEED_FORWARD, WIDTH)
        add(f"{block}ffn_up", FEED_FORWARD, WIDTH)
        add(f"{block}ffn_down", WIDTH, FEED_FORWARD)


def serve(path: Path, port: int) -> None:
    """Serve the model until killed."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = [NAME]
    params.port = port
    params.n_ctx = SLOTS * CONTEXT
    params.n_parallel = SLOTS
    params.cpuparams.n_threads = 1
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.endpoint_metrics = True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    model = Path(sys.argv[1])
    if not model.exists():
        write_model(model)
    serve(model, int(sys.argv[2]))
