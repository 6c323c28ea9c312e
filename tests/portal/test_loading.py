"""Pages that are sent before their data."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from fastapi import Request
from nicegui import Client, ui
from nicegui.page import page

from lowtide.core.errors import NotFound, Unavailable
from portal import loading
from portal.loading import limited, load, soon

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

BROWSER = [(b"accept", b"text/html,*/*")]


class Opened:
    """A page being built, and whether its frame was sent."""

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        scope = {"type": "http", "path": "/", "headers": headers}
        self.client = Client(page(""), request=Request(scope))
        self.sent = asyncio.Event()

    async def connected(self, _: float) -> None:
        """Stand in for a browser that connects once it has the frame."""
        self.sent.set()

    async def load(self, read: Callable[[], object]) -> object:
        """Load, as a page of this client."""
        with self.client:
            return await load(read)

    def texts(self) -> list[str]:
        return [each.text for each in self.client.elements.values() if isinstance(each, ui.label)]


def _run(
    monkeypatch: pytest.MonkeyPatch,
    scenario: Callable[[Opened], Coroutine[None, None, None]],
    *,
    browser: bool = True,
) -> None:
    async def main() -> None:
        opened = Opened(BROWSER if browser else [])
        monkeypatch.setattr(opened.client, "connected", opened.connected)
        try:
            async with asyncio.timeout(20):
                with opened.client:
                    await scenario(opened)
        finally:
            opened.client.delete()

    asyncio.run(main())


def test_quick_reading_is_part_of_first_response(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "FIRST_WAIT", 10.0)

    async def scenario(opened: Opened) -> None:
        assert await load(lambda: 7) == 7
        assert not opened.sent.is_set()
        assert opened.texts() == []

    _run(monkeypatch, scenario)


@pytest.mark.parametrize(("browser", "sent"), [(True, True), (False, False)])
def test_frame_is_sent_before_slow_reading(
    monkeypatch: pytest.MonkeyPatch, *, browser: bool, sent: bool
) -> None:
    released = threading.Event()

    async def scenario(opened: Opened) -> None:
        asyncio.get_running_loop().call_later(1.0, released.set)
        reading = asyncio.ensure_future(opened.load(lambda: released.wait(10)))
        await asyncio.sleep(0.6)
        assert opened.texts() == (["Loading…"] if sent else [])
        assert opened.sent.is_set() is sent
        await reading
        assert opened.texts() == []

    _run(monkeypatch, scenario, browser=browser)


def test_unavailable_reading_is_repeated_and_its_error_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "_RETRY_SECONDS", 0.05)
    answers = iter([Unavailable("too busy"), Unavailable("too busy"), None])
    texts = []

    async def scenario(opened: Opened) -> None:
        def read() -> str:
            texts.append(opened.texts())
            if (error := next(answers)) is not None:
                raise error
            return "content"

        assert await load(read) == "content"
        assert opened.texts() == []

    _run(monkeypatch, scenario)
    assert texts == [[], ["too busy"], ["too busy"]]


def test_unavailable_reading_sends_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([Unavailable("too busy"), None])

    def read() -> None:
        if (error := next(answers)) is not None:
            raise error

    async def scenario(opened: Opened) -> None:
        await load(read)
        assert opened.sent.is_set()

    _run(monkeypatch, scenario, browser=False)


@pytest.mark.parametrize(
    ("error", "texts"), [(NotFound("gone"), []), (ValueError("a bug"), ["This page could not be loaded."])]
)  # fmt: skip
def test_error_after_frame_ends_loading(
    monkeypatch: pytest.MonkeyPatch, error: Exception, texts: list[str]
) -> None:
    released = threading.Event()

    def read() -> None:
        released.wait(10)
        raise error

    async def scenario(opened: Opened) -> None:
        asyncio.get_running_loop().call_later(0.6, released.set)
        with pytest.raises(type(error)):
            await load(read)
        assert opened.sent.is_set()
        assert opened.texts() == texts

    _run(monkeypatch, scenario)


def test_page_is_built_without_slow_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(_: Opened) -> None:
        ended = asyncio.Event()

        async def extra() -> None:
            await asyncio.sleep(0.6)
            ended.set()

        await soon(extra())
        assert not ended.is_set()
        await ended.wait()

    _run(monkeypatch, scenario)


def test_time_to_build_ends_with_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BUILD_SECONDS", 0.5)
    released = threading.Event()
    built = []

    async def waits_for_data() -> None:
        built.append(await load(lambda: released.wait(10)))

    async def hangs() -> None:
        await asyncio.sleep(10)

    async def scenario(_: Opened) -> None:
        asyncio.get_running_loop().call_later(1.0, released.set)
        await limited(waits_for_data)()
        with pytest.raises(TimeoutError):
            await limited(hangs)()

    _run(monkeypatch, scenario)
    assert built == [True]
