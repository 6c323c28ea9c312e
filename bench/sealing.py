"""The rate of encrypted objects, beside plain ones and beside AES-256-GCM alone.

    python -m bench.sealing [MEBIBYTES]

Writes and reads an object in a folder, plain and encrypted in turn, and prints the median of five
runs in MiB a second, and the ratios. Ranges are those of 200 requests of 600 bytes, spread over the
object: each costs a segment of 64 KiB. The ceiling is AES-256-GCM of `cryptography` on segments of 64 KiB in memory.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict, deque
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lowtide.core.ids import TenantId
from lowtide.objects.names import DataKeyId, sealed_key
from lowtide.objects.sealed import SealedObjects
from lowtide.objects.sealing import SEGMENT
from lowtide.objects.store import CHUNK, ObstoreObjects

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROUNDS = 5
RANGES, RANGE_BYTES = 200, 600
KEYS = {
    "plain": "files/1",
    "encrypted": sealed_key(DataKeyId(TenantId(UUID(int=1)), UUID(int=2)), "files/1"),
}


def seconds(work: Callable[[], None]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ceiling(chunks: Sequence[bytes]) -> None:
    """Encrypt in memory."""
    cipher, nonce = AESGCM(bytes(32)), bytes(12)
    for chunk in chunks:
        for start in range(0, CHUNK, SEGMENT):
            cipher.encrypt(nonce, chunk[start : start + SEGMENT], None)


def write(objects: SealedObjects, key: str, chunks: Sequence[bytes]) -> None:
    """Write an object."""
    with objects.open_writer(key) as writer:
        for chunk in chunks:
            writer.write(chunk)


def read(objects: SealedObjects, key: str, _: Sequence[bytes]) -> None:
    """Read it from its start to its end."""
    deque(objects.stream(key), maxlen=0)


def read_ranges(objects: SealedObjects, key: str, chunks: Sequence[bytes]) -> None:
    """Read ranges of it."""
    step = len(chunks) * CHUNK // RANGES
    objects.read_ranges(key, [(number * step, RANGE_BYTES) for number in range(RANGES)])


def main(mebibytes: int) -> None:
    """Measure and print."""
    chunks = [os.urandom(CHUNK) for _ in range(mebibytes)]
    steps = {"write": write, "read": read, "ranges": read_ranges}
    times: defaultdict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        objects = SealedObjects(ObstoreObjects(Path(folder).as_uri()), lambda _: b"k" * 32)
        for _ in range(ROUNDS):
            times["AES-256-GCM alone"].append(seconds(partial(ceiling, chunks)))
            for (name, step), (kind, key) in product(steps.items(), KEYS.items()):
                times[f"{name}, {kind}"].append(seconds(partial(step, objects, key, chunks)))
    medians = {name: statistics.median(each) for name, each in times.items()}
    for name, median in medians.items():
        unit = f"{median * 1e3:8.1f} ms" if "ranges" in name else f"{mebibytes / median:8.0f} MiB/s"
        print(f"{name:22} {unit}")
    for name in steps:
        print(f"{name}: {medians[f'{name}, plain'] / medians[f'{name}, encrypted']:.2f} of plain")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 256)
