"""Copying to the visitor's clipboard, and telling whether that worked."""

from __future__ import annotations

import json
from typing import Final

from nicegui import ui

_LONGEST: Final = 10.0


async def copy(text: str) -> None:
    """Copy a text; says so, or that it has to be done by hand."""
    # Over plain HTTP there is no clipboard, and a browser may refuse.
    write = f"navigator.clipboard.writeText({json.dumps(text)}).then(() => true, () => false)"
    try:
        copied = await ui.run_javascript(f"navigator.clipboard ? {write} : false", timeout=_LONGEST)
    except TimeoutError:
        copied = False
    if copied:
        ui.notify("Copied", type="positive", position="bottom")
    else:
        ui.notify("Not copied: select it and copy it by hand", type="warning", position="bottom")
