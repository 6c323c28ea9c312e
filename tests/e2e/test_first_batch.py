"""The first batch of docs/deploy.md, run with the code of the page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.command import clean_environment

if TYPE_CHECKING:
    from tests.e2e.stacks import LocalStack

ROOT = Path(__file__).resolve().parents[2]


def test_program_on_page_completes_a_batch(stack: LocalStack) -> None:
    page = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=clean_environment()
        | {"OPENAI_BASE_URL": f"{stack.base_url}/v1", "OPENAI_API_KEY": stack.api_key},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = len((ROOT / "examples/questions.jsonl").read_bytes().splitlines())
    state, answers = done.stdout.split("\n", 1)
    assert state.startswith(f"completed BatchRequestCounts(completed={lines}, failed=0")
    assert '"custom_id"' in answers
