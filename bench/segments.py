"""A batch of many segments: upload, and the split of all segments in one process.

    python -m bench.segments [--lines N] [--line-bytes N] [--runs N]

Measures a batch of one segment and one of `--lines` requests in the same run: seconds until the first
request is queued, requests per second, and the peak resident size of the process. Ends with one JSON
line; exits with 1 if a figure misses its bar.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.batch_files import write_batch_file
from bench.stage import Stage

STEPS = "bench.ingest_steps"
ONE_SEGMENT = 50_000
FIRST_SECONDS, MEGABYTES, RATIO = 5.0, 300.0, 0.8


def measure(stage: Stage, path: Path, runs: int) -> dict[str, Any]:
    """Return the medians of several splits of one file, and the figures of its upload."""
    upload = stage.measured(STEPS, "upload", str(path), role="api")
    splits = []
    for _ in range(runs):
        batch = str(stage.measured(STEPS, "create", upload["file"], role="api")["batch"])
        splits.append(stage.measured(STEPS, "segments", batch))
    medians = {name: statistics.median(each[name] for each in splits) for name in splits[0]}
    return {"upload": upload, "split": medians}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--line-bytes", type=int, default=600)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    variables = {
        "LOWTIDE_MAX_BATCH_LINES": str(arguments.lines),
        "LOWTIDE_MAX_FILE_BYTES": str(arguments.lines * arguments.line_bytes),
    }
    figures = {}
    with (
        tempfile.TemporaryDirectory(prefix="lowtide-bench-") as folder,
        Stage(Path(folder), variables=variables) as stage,
    ):
        for lines in (ONE_SEGMENT, arguments.lines):
            path = Path(folder) / f"{lines}.jsonl"
            write_batch_file(path, lines, arguments.line_bytes)
            figures[lines] = found = measure(stage, path, arguments.runs)
            path.unlink()
            upload, split = found["upload"], found["split"]
            split["rate"] = lines / split["seconds"]
            print(
                f"{lines:,} requests: upload {upload['seconds']:.1f} s, {upload['megabytes']:.0f} MB; "
                f"first request queued after {split['first']:.2f} s, {split['segments']:.0f} segments "
                f"in {split['seconds']:.1f} s, {split['rate']:,.0f} requests/s, "
                f"{split['megabytes']:.0f} MB"
            )
    small, large = figures[ONE_SEGMENT], figures[arguments.lines]
    bars = {
        "first request": large["split"]["first"] > FIRST_SECONDS,
        "memory": max(each["megabytes"] for each in large.values()) > MEGABYTES,
        "rate": large["split"]["rate"] < RATIO * small["split"]["rate"],
    }
    missed = [name for name, is_missed in bars.items() if is_missed]
    print(json.dumps({"segments": figures, "missed": missed}))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
