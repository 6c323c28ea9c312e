"""Take the screenshots of the portal: `make screenshots`.

Captures every page of a stack of its own (docs/scene.py), light and dark, wide and on a phone. The
files go to `docs/images`, or to the directory in OUT, as `NAME[-narrow][-dark].png`.
"""

from __future__ import annotations

import io
import os
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import sync_playwright

from docs.scene import FIRST, LAST, Job, request_lines, staged
from docs.scene_cells import portal_of_cells

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Browser, Page

    from lowtide.local.state import Status

CHROMIUM: Final = Path("/usr/bin/chromium")
FLAGS: Final = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PAGES: Final = {
    "overview": "/",
    "batches": "/batches",
    "dead-letters": "/dead-letters",
    "queues": "/queues",
    "health": "/health",
    "tenants": "/tenants",
    "keys": "/keys",
    "audit": "/audit",
    "usage": "/usage?tenant=acme",
    "search": "/search?q=nightly",
}
SIZES: Final = {"": (1440, 1180), "-narrow": (390, 1180)}
COLOURS: Final = 256
_PICTURE: Final = re.compile(r"images/([\w-]+\.png)")
UPLOADED: Final = Job("acme", "nightly-eval", "llama-3.1-8b", 2_500)


def main() -> None:
    """Run the scene, and take the screenshots."""
    out = Path(os.environ.get("OUT") or Path(__file__).parent / "images")
    out.mkdir(parents=True, exist_ok=True)
    with staged(float(os.environ.get("SCENE_SECONDS") or 90)) as status:
        take_pictures(status, out)
        with portal_of_cells(status) as cells:
            take_cells(status, cells, out)
    if "OUT" not in os.environ:
        for picture in out.glob("*.png"):
            if picture.name not in shown():
                picture.unlink()


def shown() -> set[str]:
    """Return the names of the pictures that the documentation shows."""
    root = Path(__file__).parent
    pages = (root.parent / "README.md", *root.glob("*.md"))
    return {name for page in pages for name in _PICTURE.findall(page.read_text(encoding="utf-8"))}


def take_pictures(status: Status, out: Path) -> None:
    """Capture every page, light and dark, wide and narrow."""
    with sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        for scheme in ("light", "dark"):
            for suffix, size in SIZES.items():
                ending = f"{suffix}{'-dark' if scheme == 'dark' else ''}.png"
                page = _visit(browser, status, scheme, size)
                _take_all(page, status.portal_url, partial(_file, out, ending))
                page.context.close()
        browser.close()


def take_cells(status: Status, portal: str, out: Path) -> None:
    """Capture the page of cells, light and dark."""
    with sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        for scheme, ending in (("light", ".png"), ("dark", "-dark.png")):
            page = _visit(browser, status, scheme, SIZES[""], portal)
            page.goto(portal)
            _open(page, f"{portal}/cells")
            _picture(page, _file(out, ending, "cells"))
        browser.close()


def _file(folder: Path, ending: str, name: str) -> Path:
    return folder / f"{name}{ending}"


def _visit(
    browser: Browser, status: Status, scheme: str, size: tuple[int, int], portal: str = ""
) -> Page:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if scheme == "dark" else "light",
        timezone_id="Europe/Berlin",
        locale="en-GB",
    )
    address = f"{portal or status.portal_url}/sign-in"
    context.request.post(address, form={"secret": status.portal_password})
    return context.new_page()


def _take_all(page: Page, portal: str, target: Callable[[str], Path]) -> None:
    # The portal knows browser properties such as the time zone only from the second page on.
    page.goto(portal)
    for name, path in PAGES.items():
        if _open(page, f"{portal}{path}"):
            _picture(page, target(name))
    for name, user in (
        ("batch", LAST[0].user),
        ("batch-ended", FIRST[2].user),
        ("failed", FIRST[3].user),
    ):
        _open(page, f"{portal}/batches?user={user}")
        page.locator('a[href^="/batches/batch_"]').first.click()
        page.wait_for_url("**/batches/batch_*")
        _picture(page, target(name))
    _take_request(page, portal, target("request"))
    _take_upload(page, portal, target)
    page.context.clear_cookies()
    _open(page, f"{portal}/sign-in")
    _picture(page, target("sign-in"))


def _take_request(page: Page, portal: str, target: Path) -> None:
    """Capture the details of a failed request."""
    _open(page, f"{portal}/batches?user={FIRST[2].user}")
    address = page.locator('a[href^="/batches/batch_"]').first.get_attribute("href")
    _open(page, f"{portal}{address}?status=Failed")
    with suppress(PlaywrightError):
        page.get_by_role("button", name="View request").first.click(timeout=3000)
        page.get_by_role("dialog", name="Request").wait_for(timeout=3000)
    _picture(page, target)


def _take_upload(page: Page, portal: str, target: Callable[[str], Path]) -> None:
    """Capture the upload of a file with two bad lines, and of one without."""
    good = [f"{line}\n" for line in request_lines(UPLOADED)]
    bad = [*good[:40], good[3], '{"custom_id": "half a li\n', *good[41:]]
    for name, lines in (("upload-problems", bad), ("upload", good)):
        _open(page, f"{portal}/upload")
        page.get_by_label("Input file").set_input_files(
            {
                "name": "nightly-eval.jsonl",
                "mimeType": "application/jsonl",
                "buffer": "".join(lines).encode(),
            }
        )
        page.get_by_text("2 problems" if lines is bad else "Ready", exact=True).wait_for()
        _picture(page, target(name))


def _open(page: Page, url: str) -> bool:
    answer = page.goto(url)
    page.get_by_role("heading", level=1).wait_for()
    return answer is not None and answer.ok


def _picture(page: Page, target: Path) -> None:
    # Wait for the charts and the first update of a live page.
    page.wait_for_timeout(1500)
    # Crop the empty space below the page's content.
    size = page.viewport_size
    assert size is not None  # noqa: S101 - every page here has one
    end = page.evaluate("document.querySelector('.page').getBoundingClientRect().bottom + scrollY")
    taken = page.screenshot(
        clip={"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], end)}
    )
    with Image.open(io.BytesIO(taken)) as picture:
        _few_colours(picture.convert("RGB")).save(target, optimize=True)
    print(target.name, target.stat().st_size // 1000, "kB")  # noqa: T201


def _few_colours(picture: Image.Image) -> Image.Image:
    """Reduce a picture to its most frequent colours, a third of the size.

    The other colours become the nearest of these.
    """
    pixels = np.asarray(picture).reshape(-1, 3)
    colours, places, counts = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
    kept = colours[np.argsort(-counts)[:COLOURS]]
    apart = ((colours[:, None].astype(int) - kept[None].astype(int)) ** 2).sum(axis=2)
    few = Image.fromarray(
        apart.argmin(axis=1).astype(np.uint8)[places].reshape(picture.size[::-1]), "P"
    )
    few.putpalette(kept.tobytes())
    return few


if __name__ == "__main__":
    main()
