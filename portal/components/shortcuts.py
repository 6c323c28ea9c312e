"""Keyboard shortcuts of every page, and the script behind them.

The script is served as a file, so that a content security policy can restrict script sources.
"""

from __future__ import annotations

from typing import Final

from fastapi import Response
from nicegui import app, ui

from portal.cells import PATH as CELLS
from portal.components.basics import heading
from portal.services import known_cells

PATH: Final = "/assets/portal.js"

KEYS: Final = (
    ("/", "Search"),
    ("g o", "Overview"),
    ("g b", "Batches"),
    ("g u", "Upload"),
    ("g d", "Dead letters"),
    ("g q", "Queues"),
    ("g t", "Tenants"),
    ("g k", "API keys"),
    ("g a", "Audit log"),
    ("g h", "Health"),
    ("g s", "Usage of your tenant"),
    ("g c", "Cells"),
    ("r", "Refresh now"),
    ("t", "Switch theme"),
    ("?", "Show this list"),
)

# Shortcuts press the element with their `data-key`; the search box has `data-search`.
_SCRIPT: Final = """
(() => {
  const places = { o: "/", b: "/batches", u: "/upload", d: "/dead-letters", q: "/queues", h: "/health",
    t: "/tenants", k: "/keys", a: "/audit", s: "/usage", CELLS };
  const presses = { r: "refresh", t: "theme", "?": "help" };
  let wentAt = -Infinity;
  const search = () => {
    const box = document.querySelector("input[data-search]");
    if (box) { box.focus(); box.select(); }
    return box !== null;
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const typing = event.target.closest?.("input, textarea, select, [contenteditable=true], [role=combobox]");
    if (typing || document.querySelector(".q-dialog, .q-menu")) return;
    const went = event.timeStamp - wentAt < 1500;
    wentAt = -Infinity;
    if (went && places[event.key]) location.assign(places[event.key]);
    else if (event.key === "g") wentAt = event.timeStamp;
    else if (event.key === "/") { if (!search()) return; }
    else if (presses[event.key]) document.querySelector(`[data-key=${presses[event.key]}]`)?.click();
    else return;
    event.preventDefault();
  });
  // On a narrow screen the navigation scrolls to the open page.
  const showPlace = (tries) => {
    const place = document.querySelector(".place[aria-current]");
    if (place) place.parentElement.scrollLeft = place.offsetLeft - innerWidth / 3;
    else if (tries > 0) setTimeout(() => showPlace(tries - 1), 100);
  };
  addEventListener("load", () => showPlace(30));
  // The server renders times in the viewer's time zone, which it reads from this cookie.
  document.cookie = `zone=${Intl.DateTimeFormat().resolvedOptions().timeZone}; path=/; max-age=31536000; samesite=lax`;
})();
"""


def install() -> None:
    """Serve the script and load it on every page."""
    app.add_api_route(PATH, _script, methods=["GET"], include_in_schema=False)
    ui.add_head_html(f'<script src="{PATH}" defer></script>', shared=True)


def help_dialog() -> ui.dialog:
    """Return the dialog that lists the shortcuts, closed."""
    with (
        ui.dialog().props('aria-label="Keyboard shortcuts"') as dialog,
        ui.element("div").classes("card dialog section"),
    ):
        heading("Keyboard shortcuts")
        with ui.element("dl").classes("keys"):
            for key, meaning in KEYS:
                if meaning == "Cells" and known_cells().watch is None:
                    continue
                with ui.element("dt"), ui.element("kbd"):
                    ui.label(key)
                with ui.element("dd"):
                    ui.label(meaning)
        ui.button("Close", on_click=dialog.close, color=None).props("flat no-caps")
    return dialog


async def _script() -> Response:
    cells = "" if known_cells().watch is None else f'c: "{CELLS}"'
    script = _SCRIPT.replace("CELLS", cells)
    return Response(script, media_type="text/javascript", headers={"Cache-Control": "no-cache"})
