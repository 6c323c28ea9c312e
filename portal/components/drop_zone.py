"""Where a file is dropped."""

from __future__ import annotations

from typing import Final

from nicegui import ui

from portal.arrivals import NAME_HEADER, PAGE_HEADER, PATH
from portal.formats import size

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
_HEADERS: Final = (
    f'files => [{{ name: "{NAME_HEADER}", value: encodeURIComponent(files[0].name) }}, '
    f'{{ name: "{PAGE_HEADER}", value: "%s" }}]'
)


class DropZone:
    """Sends one file after the other, by dropping or choosing, to the page that `word` leads to.

    `most` is in bytes.
    """

    def __init__(self, word: str, *, most: int) -> None:
        self._upload = ui.upload(
            auto_upload=True,
            max_file_size=most,
            on_rejected=lambda: ui.notify(
                f"That file was not taken: one at a time, of at most {size(most)}.", type="negative"
            ),
        ).props("flat bordered send-raw accept=.jsonl,.ndjson,.json,.txt")
        self._upload.props["url"] = PATH
        self._upload.props[":headers"] = _HEADERS % word
        # Not before the answer: a reset takes back what is on its way.
        for event in ("uploaded", "failed"):
            self._upload.on(event, self._upload.reset, args=[])
        self._upload.classes("drop-zone")
        self._upload.add_slot("header", _HEADER)
        self._upload.add_slot("list", "<span></span>")
