"""The drop zone and file picker of the upload page."""

from __future__ import annotations

from nicegui import ui

from portal.formats import size


class DropZone(ui.element, component="drop_zone.js"):
    """A drop zone; sends one file at a time, in parts, to the page that `token` routes to.

    `max_bytes` is the max file size in bytes; `hint` is shown while no file is being sent.
    """

    def __init__(self, token: str, *, path: str, max_bytes: int, hint: str) -> None:
        super().__init__()
        self.props["path"] = path
        self.props["token"] = token
        self.props["maxBytes"] = max_bytes
        self.props["rejection"] = (
            f"File rejected: upload one file at a time, of at most {size(max_bytes)}."
        )
        self.props["hint"] = hint
