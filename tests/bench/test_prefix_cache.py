"""The model of a prefix cache: what it keeps, evicts and makes wait."""

from __future__ import annotations

from random import Random

import pytest

from bench.batching import Batch, Hardware
from bench.prefix_cache import BLOCK_TOKENS, TOKEN_CHARACTERS, PrefixCache, Prompt

BLOCK = BLOCK_TOKENS * TOKEN_CHARACTERS


def prompt(*blocks: str, end: str = "?") -> Prompt:
    """Return a prompt of whole blocks, each named by a letter, and an end of at most a block."""
    return Prompt.of("".join(block * BLOCK for block in blocks) + end)


def used(cache: PrefixCache, given: Prompt, *, answer: int = 1) -> int | None:
    """Run a request to its end; return the tokens that it computed."""
    computed = cache.start(0, given, answer)
    if computed is not None:
        cache.end(0)
    return computed


def test_only_whole_blocks_of_a_common_beginning_are_reused() -> None:
    cache = PrefixCache(100)
    assert used(cache, prompt("a", "b")) == 33
    assert used(cache, prompt("a", "b")) == 1
    assert used(cache, prompt("a", "c")) == 17
    assert used(cache, prompt("b", "a")) == 33  # the same blocks after others
    assert used(cache, prompt("a", "b", end="!")) == 1
    assert (cache.queried, cache.hit) == (5 * 33, 16 * (2 + 1 + 2))


def test_the_last_token_is_always_computed() -> None:
    cache = PrefixCache(100)
    assert used(cache, prompt("a", "b", end="")) == 32
    assert used(cache, prompt("a", "b", end="")) == 16


def test_the_least_recently_used_end_is_evicted_first() -> None:
    cache = PrefixCache(6)
    used(cache, prompt("a", "b"))
    used(cache, prompt("c", "d"))
    used(cache, prompt("a", "b"))
    assert used(cache, prompt("e", "f")) == 33  # takes the two empty blocks and d
    assert used(cache, prompt("a", "b")) == 1
    assert used(cache, prompt("c")) == 1
    assert used(cache, prompt("c", "d")) == 17


def test_blocks_in_use_are_neither_evicted_nor_counted_twice() -> None:
    cache = PrefixCache(4)
    assert cache.start(1, prompt("a", "b"), 1) == 33
    assert cache.start(2, prompt("a", "b"), 1) == 1
    assert cache.start(3, prompt("c"), 1) is None
    cache.end(1)
    assert cache.start(3, prompt("c"), 1) is None  # one block is free, two are needed
    cache.end(2)
    assert cache.start(3, prompt("c"), 1) == 17


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_neither_lost_nor_made(seed: int) -> None:
    rng, cache, running = Random(seed), PrefixCache(40), set[int]()  # noqa: S311
    for request in range(2000):
        given = prompt(*(rng.choice("ab") for _ in range(rng.randrange(6))))
        if cache.start(request, given, rng.randrange(1, 60)) is not None:
            running.add(request)
        if running and rng.random() < 0.6:
            cache.end(running.pop())
    for request in running:
        cache.end(request)
    assert cache.start(-1, prompt("x", "y"), 16 * 37) is not None
    cache.end(-1)
    assert cache.start(-1, prompt("x", "y"), 16 * 38) is None


def test_a_batch_computes_what_the_cache_lacks_and_waits_for_room() -> None:
    hardware = Hardware(8, step=1.0, sequence=0.0, prefill=0.0, prompt_token=1.0)
    batch = Batch(hardware, PrefixCache(4))
    batch.add(1, 1, prompt("a", "b"))
    batch.add(2, 1, prompt("a", "b"))
    batch.add(3, 1, prompt("c"))
    assert batch.begin_step() == 1.0 + 33 + 1
    assert (batch.running, batch.waiting) == (2, 1)
    assert batch.end_step() == [1, 2]
    assert batch.begin_step() == 1.0 + 17
