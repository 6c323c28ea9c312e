"""Ingest: upload, validation, split and finalize, beside references measured in the same run.

    python -m bench.ingest [--quick] [--runs N]

The upload goes over HTTP to the real function under gunicorn, with an embedded PostgreSQL in
durable settings and a directory as object store; the other steps run the real services, each in its
own process. Every figure is a median; memory is the peak resident size of the working process,
imports included. Ends with one JSON line; exits with 1 if a figure misses its bar.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.batch_files import write_batch_file
from bench.stage import Function, Stage
from lowtide.local.ports import HOST

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = "bench.ingest_steps"
LINE_BYTES = 600
BOUNDARY = "bench-ingest-boundary"
UPLOAD_SECONDS, UPLOAD_MEGABYTES = 3.0, 200.0
SPLIT_RATE, SPLIT_RATIO, FINALIZE_RATE, SEGMENTED_RATIO = 60_000, 0.3, 80_000, 0.8
SEGMENTS = 4


def timed(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def median(runs: int, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each float over several runs, and other values of the last run."""
    found = [measure() for _ in range(runs)]
    return {
        name: statistics.median(run[name] for run in found) if isinstance(value, float) else value
        for name, value in found[-1].items()
    }


def upload(function: Function, key: str, path: Path) -> dict[str, Any]:
    """Post a file as a client does; timed from connecting to the end of the response."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{BOUNDARY}--\r\n".encode()
    length = len(head) + path.stat().st_size + len(tail)
    request = (
        f"POST /v1/files HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {length}\r\n"
        "Connection: close\r\n\r\n"
    ).encode()
    before, began = function.cpu(), time.perf_counter()
    with socket.create_connection((HOST, function.port)) as connection, path.open("rb") as file:
        connection.sendall(request + head)
        connection.sendfile(file)
        connection.sendall(tail)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    seconds = time.perf_counter() - began
    status, _, body = answer.partition(b"\r\n\r\n")
    made = json.loads(body)
    if b" 200 " not in status.splitlines()[0] or made["status"] != "processed":
        raise SystemExit(f"The upload failed: {answer!r}")
    return {
        "seconds": seconds,
        "cpu": function.cpu() - before,
        "megabytes": function.peak_megabytes(),
        "file": made["id"],
    }


def references(path: Path) -> dict[str, Any]:
    """Measure `sha256sum` and `cp` of a file."""
    copy = path.with_suffix(".copy")
    programs = {name: str(shutil.which(name)) for name in ("sha256sum", "cp")}
    hashing = timed(
        lambda: subprocess.run([programs["sha256sum"], path], check=True, capture_output=True)  # noqa: S603
    )
    copying = timed(lambda: subprocess.run([programs["cp"], path, copy], check=True))  # noqa: S603
    copy.unlink()
    return {"sha256sum": hashing, "cp": copying}


def measure(stage: Stage, path: Path, lines: int, runs: int) -> dict[str, Any]:
    """Measure every step for one file."""
    with stage.function("upload", "api") as function:
        key = stage.secrets.api_key
        found = {"upload": median(runs, lambda: upload(function, key, path) | references(path))}
    file = found["upload"].pop("file")

    def step(name: str, *arguments: str) -> dict[str, Any]:
        return stage.measured(STEPS, name, *arguments)

    def batch() -> str:
        return str(stage.measured(STEPS, "create", file, role="api")["batch"])

    found["validate"] = median(runs, lambda: step("validate", str(path)))
    found["split"] = median(runs, lambda: step("split", batch(), stage.url("owner")))
    if path.stat().st_size <= lines * LINE_BYTES:  # finalizing does not depend on the line size
        found["finalize"] = median(runs, lambda: step("finalize", step("drain", batch())["batch"]))
        large = step("enlarge", step("drain", batch())["batch"], str(SEGMENTS))["batch"]
        whole = step("finalize", large)
        # Beside the others, the figures are of a segment.
        found["segmented"] = whole | {
            name: whole[name] / SEGMENTS for name in ("seconds", "cpu", "copy")
        }
    return found


def show(name: str, lines: int, size: int, found: dict[str, Any]) -> None:
    """Print one file's figures."""
    print(f"\n{name}: {lines:,} lines, {size / 1e6:.1f} MB")
    print(f"  {'':10}{'s':>8}{'cpu s':>8}{'lines/s':>10}{'MB/s':>7}{'peak MB':>9}  beside")
    for step, figures in found.items():
        seconds = figures["seconds"]
        beside = ", ".join(
            f"{reference} {figures[reference]:.3f} s: {figures[reference] / seconds:.2f} x"
            for reference in ("sha256sum", "cp", "copy", "copy_requests")
            if reference in figures
        )
        print(
            f"  {step:10}{seconds:8.3f}{figures['cpu']:8.3f}{lines / seconds:10,.0f}"
            f"{size / seconds / 1e6:7.0f}{figures['megabytes']:9.0f}  {beside}"
        )


def missed(figures: dict[str, dict[str, Any]]) -> list[str]:
    """Return the names of the missed bars."""
    whole, rows = figures.get("200 MB", {}), figures.get("50k", {})
    bars = {
        "upload seconds": "upload" in whole and whole["upload"]["seconds"] > UPLOAD_SECONDS,
        "upload memory": any(f["upload"]["megabytes"] > UPLOAD_MEGABYTES for f in figures.values()),
        "split rate": "split" in rows and 50_000 / rows["split"]["seconds"] < SPLIT_RATE,
        "split to copy": "split" in rows
        and rows["split"]["copy"] / rows["split"]["seconds"] < SPLIT_RATIO,
        "finalize rate": "finalize" in rows
        and 50_000 / rows["finalize"]["seconds"] < FINALIZE_RATE,
        "segmented rate": "segmented" in rows
        and rows["finalize"]["seconds"] / rows["segmented"]["seconds"] < SEGMENTED_RATIO,
    }
    return [name for name, over in bars.items() if over]


def rounded(value: Any) -> Any:
    """Return the value with all floats rounded to four decimals."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--quick", action="store_true", help="1k lines and 20 MB, without thresholds"
    )
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    sizes = {"1k": (1_000, LINE_BYTES), "10k": (10_000, LINE_BYTES), "50k": (50_000, LINE_BYTES)}
    if arguments.quick:
        sizes = {"1k": (1_000, LINE_BYTES), "20 MB": (5_000, 4_000)}
    else:
        sizes["200 MB"] = (50_000, 4_000)
    figures = {}
    with (
        tempfile.TemporaryDirectory(prefix="lowtide-bench-") as folder,
        # A file is one segment, as `enlarge` makes others of the same size.
        Stage(Path(folder), variables={"LOWTIDE_SEGMENT_LINES": "50000"}) as stage,
    ):
        for name, (lines, line_bytes) in sizes.items():
            path = Path(folder) / f"{lines}-{line_bytes}.jsonl"
            write_batch_file(path, lines, line_bytes)
            figures[name] = measure(stage, path, lines, arguments.runs)
            show(name, lines, path.stat().st_size, figures[name])
            path.unlink()
    failed = [] if arguments.quick else missed(figures)
    print(json.dumps({"ingest": rounded(figures), "missed": failed}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
