"""Run a batch from a job in the cluster: `python nightly.py questions.jsonl`.

The token of the job's service account stands in for a key. `OPENAI_BASE_URL` is the API's URL with
`/v1`, `TOKEN_FILE` the mounted token.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from openai import OpenAI


def token() -> str:
    """Return the present token, which the client asks for before each request.

    The kubelet replaces the file before the token in it expires.
    """
    return Path(os.environ["TOKEN_FILE"]).read_text().strip()


def main() -> int:
    """Print the answers; return 1 if the batch does not complete."""
    # Up to a minute of retries: a short outage of the gateway must not lose hours of answers.
    client = OpenAI(api_key=token, max_retries=10)
    file = client.files.create(file=Path(sys.argv[1]), purpose="batch")
    # A retry after a lost answer returns the same batch.
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_headers={"Idempotency-Key": file.id},
    )
    while batch.status not in {"completed", "failed", "expired", "cancelled"}:
        time.sleep(2)
        batch = client.batches.retrieve(batch.id)
    if batch.output_file_id is not None:
        sys.stdout.write(client.files.content(batch.output_file_id).text)
    sys.stderr.write(f"{batch.id} is {batch.status}: {batch.request_counts}\n")
    return int(batch.status != "completed")


if __name__ == "__main__":
    sys.exit(main())
