"""A real browser, and pages that record every problem."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, Page

# The limit of one step: browser and portal are slow on a busy machine.
_STEP_TIMEOUT_MS = 60_000
CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Visit:
    """A page and its recorded problems."""

    page: Page
    context: BrowserContext
    origin: str
    problems: list[str] = field(default_factory=list)

    def tab(self) -> Page:
        """Open another empty page in the same session, whose problems are recorded, too."""
        page = self.context.new_page()
        self.record(page)
        return page

    def record(self, page: Page) -> None:
        """Record the problems of a page; requests to anything but `origin` are some."""
        own = (self.origin, "data:", "blob:")
        page.on(
            "console",
            lambda message: (
                self.problems.append(f"{message.text} at {message.location['url']}")
                if message.type in {"error", "warning"}
                else None
            ),
        )
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: self.problems.append(f"dialog {dialog.message}"))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(own)
                else self.problems.append(f"external {request.url}")
            ),
        )


@contextmanager
def launched() -> Iterator[Browser]:
    """Run a headless Chromium; skip the test if it is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}: apt-get install chromium")
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=str(CHROMIUM), args=_FLAGS)
        yield browser
        browser.close()


def new_visit(browser: Browser, origin: str, *, width: int = 1440, scheme: str = "light") -> Visit:
    """Open an empty page; requests to anything but `origin` are problems."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    context.set_default_timeout(_STEP_TIMEOUT_MS)
    visit = Visit(context.new_page(), context, origin)
    visit.record(visit.page)
    return visit
