"""How many batches there are, how many are chosen, and what can be done with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.domain.batch_lists import COUNTED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Protocol

    class CancelHandler(Protocol):
        """What cancels: all that match, or those that are chosen."""

        def __call__(self, *, everything: bool) -> Awaitable[None]: ...


class BatchToolbar:
    """One line above a list. A whole page that is chosen can become all that match."""

    def __init__(
        self, *, may_act: bool, on_cancel: CancelHandler, on_none: Callable[[], None]
    ) -> None:
        self._may_act = may_act
        self._everything = False
        self._count = 0
        self._on_cancel = on_cancel
        with ui.element("div").classes("actions toolbar"):
            self._counted = ui.label("").classes("muted").props("role=status").mark("matching")
            ui.element("div").classes("spacer")
            self._chosen = ui.label("").mark("chosen")
            self._all = ui.button("", on_click=self._choose_everything, color=None)
            self._none = ui.button("Choose none", on_click=on_none, color=None)
            self._cancel = ui.button("Cancel batches …", on_click=self._ask, color=None)
        for button in (self._all, self._none, self._cancel):
            button.props("flat dense no-caps")

    def show(self, count: int, chosen: int, on_page: int) -> None:
        """Show how many match, and how many of them are chosen."""
        self._count = count
        self._everything = self._everything and chosen > 0
        many = counted_batches(count)
        self._counted.text = many
        self._chosen.text = f"all {many} chosen" if self._everything else f"{chosen} chosen"
        self._all.text = f"Choose all {many} that match"
        whole = chosen == on_page and count > chosen
        self._chosen.set_visibility(chosen > 0)
        self._none.set_visibility(chosen > 0)
        self._cancel.set_visibility(self._may_act and chosen > 0)
        self._all.set_visibility(chosen > 0 and whole and not self._everything)

    def choose_none(self) -> None:
        """Forget that all were meant."""
        self._everything = False
        self.show(self._count, 0, 0)

    def _choose_everything(self) -> None:
        self._everything = True
        self._chosen.text = f"all {counted_batches(self._count)} chosen"
        self._all.set_visibility(False)

    async def _ask(self) -> None:
        await self._on_cancel(everything=self._everything)


def counted_batches(count: int) -> str:
    """Return a count of batches, as far as they are counted."""
    if count > COUNTED:
        return f"{COUNTED:,}+ batches"
    return "1 batch" if count == 1 else f"{count:,} batches"
