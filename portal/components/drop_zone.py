"""Where a file is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nicegui import ui

from portal.formats import size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nicegui.elements.upload_files import FileUpload

_HEADER: Final = """
<div class="drop">
  <q-icon name="upload_file" size="32px" aria-hidden="true"></q-icon>
  <span class="drop-title">Drop a JSONL file here, or choose one</span>
  <span class="muted small" v-if="!props.isUploading">It is checked on its way; nothing runs yet.</span>
  <div class="drop-progress" v-if="props.isUploading">
    <q-linear-progress :value="props.uploadProgress" rounded size="8px" aria-label="Upload" />
    <span class="muted small">{{ props.uploadProgressLabel }} of {{ props.uploadSizeLabel }} sent</span>
  </div>
  <q-uploader-add-trigger></q-uploader-add-trigger>
</div>
"""


class DropZone:
    """Takes one file after the other, by dropping or choosing; `most` is in bytes."""

    def __init__(self, on_file: Callable[[FileUpload], Awaitable[None]], *, most: int) -> None:
        self._upload = ui.upload(
            auto_upload=True,
            max_file_size=most,
            on_upload=lambda event: on_file(event.file),
            on_rejected=lambda: ui.notify(
                f"That file was not taken: one at a time, of at most {size(most)}.", type="negative"
            ),
        ).props("flat bordered accept=.jsonl,.ndjson,.json,.txt")
        self._upload.classes("drop-zone")
        self._upload.add_slot("header", _HEADER)
        self._upload.add_slot("list", "<span></span>")

    def rest(self) -> None:
        """Take nothing for a while."""
        self._upload.disable()

    def ready(self) -> None:
        """Take the next file."""
        self._upload.reset()
        self._upload.enable()
