"""Take the pictures of the portal: `make screenshots`.

A stack of its own runs real batches that fail, are interrupted and miss deadlines, so that every page
has something to show. Pictures go to `docs/images`, or to the folder that OUT names; `.gitignore` says
which of them are kept.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import sync_playwright

from lowtide import client as api
from lowtide.local import runtime
from lowtide.local.options import Options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai import OpenAI
    from playwright.sync_api import Browser, Page

    from lowtide.local.state import Status

CHROMIUM: Final = Path("/usr/bin/chromium")
FLAGS: Final = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PAGES: Final = {
    "portal": "/",
    "batches": "/batches",
    "upload": "/upload",
    "dead-letters": "/dead-letters",
    "queues": "/queues",
    "health": "/health",
}
WIDTHS: Final = {"": 1440, "-narrow": 390}
SCENE: Final = {
    "LOWTIDE_SIMULATED_INTERRUPTION_RATE": "0.05",
    "LOWTIDE_SIMULATED_FAILURE_RATE": "0.28",
    "LOWTIDE_SIMULATED_LATENCY": "1.5",
    "LOWTIDE_MAX_ATTEMPTS": "3",
    "LOWTIDE_RETRY_CAP": "2",
    "LOWTIDE_CURRENCY": "USD",
    "LOWTIDE_SPOT_PRICE": "0.9",
    "LOWTIDE_DEDICATED_PRICE": "2.9",
    "LOWTIDE_GRAFANA_URL": "https://grafana.example",
    "LOWTIDE_PROMETHEUS_URL": "https://prometheus.example",
}
# User, model, lines, window.
BATCHES: Final = (
    ("ana", "llama-3.1-8b", 120, "24h"),
    ("ben", "qwen2.5-7b", 60, "1m"),
    ("research", "llama-3.1-70b", 400, "2h"),
    ("chen", "llama-3.1-8b", 40, "24h"),
    ("ana", "llama-3.1-8b", 250, "6h"),
    ("nightly-eval", "qwen2.5-7b", 900, "1h"),
    ("research", "llama-3.1-70b", 1500, "24h"),
)
# Still running while the pictures are taken.
LAST: Final = ("nightly-eval", "llama-3.1-70b", 20_000, "24h")


def main() -> None:
    """Run the scene and take the pictures."""
    out = Path(os.environ.get("OUT") or Path(__file__).parent / "images")
    out.mkdir(parents=True, exist_ok=True)
    seconds = float(os.environ.get("SCENE_SECONDS") or 120)
    with _stack() as status, tempfile.TemporaryDirectory() as folder:
        client = api.open_client(status.base_url, status.api_key)
        for place, batch in enumerate((*BATCHES, LAST)):
            _submit(client, Path(folder), place, *batch)
            time.sleep(seconds / len(BATCHES))
        take_pictures(status.portal_url, status.portal_password, out)


def _submit(
    client: OpenAI, folder: Path, place: int, user: str, model: str, lines: int, window: str
) -> None:
    path = folder / f"{user}-{place}.jsonl"
    path.write_text("".join(_lines(model, lines)))
    batch = api.submit(client, path, window=window, user=user)
    print(batch.id, path.name)  # noqa: T201


def _lines(model: str, count: int) -> Iterator[str]:
    for number in range(1, count + 1):
        question = f"What does tide table {number} say about low water?"
        body = {"model": model, "messages": [{"role": "user", "content": question}]}
        line = {
            "custom_id": f"question-{number:04}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body,
        }
        yield json.dumps(line) + "\n"


@contextmanager
def _stack() -> Iterator[Status]:
    folder = Path(tempfile.mkdtemp(prefix="lowtide-screenshots-"))
    os.environ.update(SCENE)
    try:
        yield runtime.up_detached(
            Options(data_dir=folder, port=int(os.environ.get("PORT") or 8480))
        )
    finally:
        runtime.down(folder)
        shutil.rmtree(folder, ignore_errors=True)


def take_pictures(portal: str, password: str, out: Path) -> None:
    """Visit every page, light and dark, wide and narrow."""
    with sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        for scheme in ("light", "dark"):
            for suffix, width in WIDTHS.items():
                page = _visit(browser, portal, password, scheme, width)
                for name, path in (dict(PAGES) | _newest_batch(page, portal)).items():
                    target = out / f"{name}{suffix}{'-dark' if scheme == 'dark' else ''}.png"
                    _picture(page, f"{portal}{path}", target)
                page.context.close()
        browser.close()


def _visit(browser: Browser, portal: str, password: str, scheme: str, width: int) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
        timezone_id="Europe/Berlin",
    )
    context.request.post(f"{portal}/sign-in", form={"secret": password})
    return context.new_page()


def _newest_batch(page: Page, portal: str) -> dict[str, str]:
    page.goto(f"{portal}/batches")
    link = page.locator('a[href^="/batches/batch_"]').first
    try:
        link.wait_for(timeout=5000)
    except PlaywrightError:
        return {}
    return {"batch": link.get_attribute("href") or ""}


def _picture(page: Page, url: str, target: Path) -> None:
    answer = page.goto(url)
    if answer is None or not answer.ok:
        print(target.name, "not taken")  # noqa: T201
        return
    page.get_by_role("heading", level=1).wait_for()
    page.wait_for_timeout(1500)
    page.screenshot(path=str(target))
    print(target.name, target.stat().st_size // 1000, "kB")  # noqa: T201


if __name__ == "__main__":
    main()
