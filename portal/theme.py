"""Colours, type and spacing of every page."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from nicegui import app, ui

from lowtide.core.pools import Pool

PRIMARY: Final = "#1e4f8f"

FAVICON: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
    f'<rect width="32" height="32" rx="8" fill="{PRIMARY}"/>'
    '<g fill="none" stroke="#fff" stroke-width="2.6" stroke-linecap="round">'
    '<path d="M6 13.5c3.3-3 6.7-3 10 0s6.7 3 10 0"/>'
    '<path d="M6 20.5c3.3-3 6.7-3 10 0s6.7 3 10 0" opacity=".6"/></g></svg>'
)


class Tone(StrEnum):
    """The meaning of a colour; a word always accompanies it."""

    NEUTRAL = "neutral"
    INFO = "info"
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"
    SPOT = "spot"
    DEDICATED = "dedicated"


# Charts are drawn on a canvas without CSS variables: these colours suit both themes.
CHART_INK: Final = "#76859b"
CHART_RULE: Final = "rgba(127, 143, 166, .25)"
CHART_MARK: Final = "rgba(199, 119, 0, .16)"
CHART_GOOD: Final = "#3a9d68"
CHART_BAD: Final = "#d6504a"
CHART_POOLS: Final = {Pool.SPOT: "#2b97a0", Pool.DEDICATED: "#8468d8"}

_CSS = """
body {
  --ink: #16202e; --muted: #526073; --line: #dfe5ed; --card: #ffffff; --page: #f4f6fa;
  --track: #e4e9f1; --accent: #1e4f8f; --code: #eef2f8;
  --neutral: #e8ecf2; --neutral-ink: #3b4757;
  --info: #e0ebfa; --info-ink: #1b4a88;
  --good: #ddf2e3; --good-ink: #14532d; --good-fill: #2e8b57;
  --warn: #fdeccb; --warn-ink: #7a3e03; --warn-fill: #c77700;
  --bad: #fce2e1; --bad-ink: #94201c; --bad-fill: #c9342e;
  --spot: #d8f1f1; --spot-ink: #0d4f55; --spot-fill: #23858d;
  --dedicated: #e9e4fa; --dedicated-ink: #4a2f95; --dedicated-fill: #7257c9;
  --info-fill: #2f6fc0; --neutral-fill: #8593a8;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Ubuntu, Cantarell,
    "Helvetica Neue", Arial, sans-serif;
  font-size: 14px; line-height: 1.45; color: var(--ink); background: var(--page);
  font-variant-numeric: tabular-nums; -webkit-font-smoothing: antialiased;
}
body.body--dark {
  --ink: #e7edf5; --muted: #a2b0c3; --line: #2a3749; --card: #17212f; --page: #0e151f;
  --track: #2a3749; --accent: #8db9f2; --code: #0e151f;
  --neutral: #2c394b; --neutral-ink: #cfd8e4;
  --info: #17355c; --info-ink: #b5d3f8;
  --good: #12392a; --good-ink: #a3e2bb; --good-fill: #43a871;
  --warn: #46300c; --warn-ink: #fbd38a; --warn-fill: #d99a2b;
  --bad: #4d1d1f; --bad-ink: #fdb8b4; --bad-fill: #e0625c;
  --spot: #10393d; --spot-ink: #9de0e3; --spot-fill: #39a3ab;
  --dedicated: #30265a; --dedicated-ink: #d0c4fb; --dedicated-fill: #9580e0;
  --info-fill: #5b98e2; --neutral-fill: #74839a;
  color: var(--ink); background: var(--page);
}
.q-layout, .q-page-container { background: transparent; }
.nicegui-content { padding: 0; }
h1, h2, p, dl, dd { margin: 0; }
.muted { color: var(--muted); }
.small { font-size: 12.5px; }
.mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.ellipsis { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }

.q-header.topbar {
  flex-direction: row; flex-wrap: wrap; align-items: center; gap: 0 12px; min-height: 56px;
  padding: 0 max(24px, calc((100% - 1360px) / 2 + 24px));
  background: var(--card); color: var(--ink); border-bottom: 1px solid var(--line);
}
.brand { display: flex; align-items: center; gap: 10px; color: inherit; text-decoration: none;
  font-weight: 650; font-size: 17px; letter-spacing: -.01em; }
.brand img { width: 28px; height: 28px; display: block; }
.cell-name { max-width: 140px; letter-spacing: 0; }
.places { display: flex; gap: 2px; flex: 1; min-width: 0; }
.place { display: flex; align-items: center; gap: 6px; padding: 7px 10px; border-radius: 8px;
  color: var(--muted); text-decoration: none; font-weight: 550; white-space: nowrap; }
.place .q-icon { font-size: 18px; }
.place:hover { color: var(--ink); background: var(--track); }
.place[aria-current] { color: var(--accent); background: var(--info); }
.tools { display: flex; align-items: center; gap: 2px; margin-left: auto; }
.search { flex: 0 1 220px; min-width: 0; }
.search input { width: 100%; height: 34px; padding: 0 10px; border: 1px solid var(--line);
  border-radius: 8px; background: var(--page); color: var(--ink); font: inherit; font-size: 13px; }
.search input::placeholder { color: var(--muted); opacity: 1; }
.matches { list-style: none; margin: 0; padding: 0; display: flex; flex-direction: column; gap: 10px; }
.topbar .q-field { width: 132px; }
.topbar .q-field__label, .topbar .q-field__native, .topbar .q-field__marginal { color: var(--muted); }
.topbar .q-field__native { color: var(--ink); }

.page { width: 100%; max-width: 1360px; margin: 0 auto; padding: 24px; display: flex;
  flex-direction: column; gap: 20px; }
.content { display: contents; }
.titlebar { display: flex; align-items: baseline; gap: 4px 16px; flex-wrap: wrap; }
h1 { overflow-wrap: anywhere; font-size: 24px; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; }
h2 { font-size: 15px; line-height: 1.3; font-weight: 650; letter-spacing: 0; }
h3 { font-size: 14px; line-height: 1.3; font-weight: 600; overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; min-width: 0; }
.cards { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 16px; }
.halves { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
.stat { display: flex; flex-direction: column; gap: 2px; }
.stat .value { font-size: 30px; line-height: 1.2; font-weight: 650; letter-spacing: -.02em; }
.stat .value.bad { color: var(--bad-ink); }
.chart { width: 100%; height: 210px; }
.chart-head { display: flex; align-items: baseline; gap: 4px 12px; flex-wrap: wrap; }
.section { display: flex; flex-direction: column; gap: 14px; }
.way-out button { padding: 0; border: 0; background: none; color: var(--accent); font: inherit;
  text-decoration: underline; cursor: pointer; }
.outside { color: var(--accent); }
.keys { display: grid; grid-template-columns: auto 1fr; gap: 8px 16px; align-items: center; }
kbd { display: inline-block; padding: 1px 8px; border: 1px solid var(--line); border-radius: 6px;
  background: var(--code); font-size: 12.5px; }
.q-dialog .card.dialog { min-width: min(320px, 90vw); max-width: 560px; color: var(--ink); }
.actions { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; }
.actions.end { justify-content: flex-end; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px 12px; }
.concerns { border-left: 4px solid var(--warn-fill); display: flex; flex-direction: column; gap: 8px; }
.concerns ul { margin: 0; padding-left: 18px; }
.concerns a { color: var(--accent); }
.filters { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px;
  padding: 16px 20px; border-bottom: 1px solid var(--line); }
.toolbar { padding: 10px 20px; border-bottom: 1px solid var(--line); }
.toolbar .spacer { flex: 1; }
.toolbar .q-btn { color: var(--accent); }
.result { display: flex; flex-wrap: wrap; gap: 4px 12px; padding: 10px 20px; }
.result:empty { display: none; }
.pager { display: flex; align-items: center; justify-content: center; gap: 12px; padding: 8px; }
.link, .nicegui-link { color: var(--accent); }
.break { overflow-wrap: anywhere; }
.clamp { display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical;
  overflow: hidden; max-width: 360px; white-space: normal; overflow-wrap: anywhere; }
.q-dialog .card.dialog.wide { width: min(860px, 94vw); max-width: none; }
.source { margin: 0; padding: 10px 12px; max-height: 34vh; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: 12.5px; background: var(--code); border-radius: 8px; }
.drop-zone { border: 2px dashed var(--line); border-radius: 10px; }
.drop-zone.over { border-color: var(--accent); }
.drop-message { margin: 12px; }
.drop-progress .q-linear-progress, .drop .q-btn { color: var(--accent); }
.drop { position: relative; padding: 34px 20px; display: flex; flex-direction: column; gap: 6px;
  align-items: center; text-align: center; }
.drop.choose:hover, .drop.choose:focus-within, .over .drop { background: color-mix(in srgb, var(--track) 45%, transparent); }
.drop .q-icon { color: var(--accent); }
.drop-title { font-size: 16px; font-weight: 600; }
.drop-progress { width: min(420px, 100%); display: flex; flex-direction: column; gap: 4px; }
.drop input { position: absolute; inset: 0; width: 100%; opacity: 0; cursor: pointer; }
.report-head { display: flex; align-items: baseline; gap: 6px 10px; flex-wrap: wrap; }
.problems { max-height: 320px; overflow-y: auto; border: 1px solid var(--line); border-radius: 8px; }
.problem { display: flex; gap: 14px; padding: 8px 12px; }
.problem + .problem { border-top: 1px solid var(--line); }
.problem > :first-child { min-width: 76px; color: var(--bad-ink); }
.fields { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 12px;
  max-width: 640px; }
.example { margin: 0; padding: 12px 14px; overflow-wrap: anywhere; white-space: pre-wrap;
  font-size: 12.5px; background: var(--code); border: 1px solid var(--line); border-radius: 8px; }
.narrow-field { max-width: 320px; }
.footer { display: flex; flex-wrap: wrap; gap: 4px 16px; color: var(--muted); font-size: 12.5px; }

.badge { display: inline-block; padding: 2px 9px; border-radius: 999px; font-size: 12.5px;
  line-height: 18px; font-weight: 600; white-space: nowrap; }
.badges { display: inline-flex; gap: 4px; flex-wrap: wrap; }
TONES
.bar { display: flex; height: 6px; border-radius: 3px; background: var(--track); overflow: hidden; }
.bar > div { height: 100%; transition: width .4s ease; }
@media (prefers-reduced-motion: reduce) { .bar > div { transition: none; } }

.pool { display: flex; flex-direction: column; gap: 8px; }
.pool + .pool, .probe + .probe { border-top: 1px solid var(--line); padding-top: 14px; }
.pools { display: flex; flex-direction: column; gap: 14px; }
.fleet-pools { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
  gap: 14px 40px; padding-bottom: 14px; }
.fleet-pools:not(:last-child) { border-bottom: 1px solid var(--line); }
.fleet-pools .pool + .pool { border-top: 0; padding-top: 0; }
.fleet-choice { max-width: 320px; }
.fleet-choice:empty { display: none; }
.pool-head { display: flex; align-items: center; gap: 10px; justify-content: space-between; }
.pool-figures { display: flex; gap: 4px 20px; flex-wrap: wrap; }
.pool-figures b, .probe b { font-weight: 650; }
.probe { display: flex; gap: 4px 12px; align-items: center; flex-wrap: wrap; }
.probe .name { font-weight: 600; min-width: 84px; }
.probe > :empty { display: none; }
.probe.component .name { min-width: 165px; }
.probe .advice { flex-basis: 100%; padding: 6px 10px; border-radius: 8px; background: var(--code);
  overflow-wrap: anywhere; }
.stacked { display: flex; flex-direction: column; gap: 16px; min-width: 0; }
.dashboards { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 12.5px; }
.titlebar + .dashboards { margin-top: -12px; }
.errors { margin: 0; padding: 0; list-style: none; display: flex; flex-direction: column; gap: 4px; }
.errors li { display: flex; gap: 12px; align-items: baseline; min-width: 0; }
.errors .count { min-width: 56px; text-align: right; font-variant-numeric: tabular-nums; }
.errors a[aria-current] { font-weight: 600; }
.concerns ul.alerts { padding: 0; list-style: none; display: flex; flex-direction: column; gap: 8px; }
.alert { display: flex; flex-wrap: wrap; gap: 2px 10px; align-items: baseline; }
.scrolled-x { overflow-x: auto; }
.fleets td:first-of-type { min-width: 140px; overflow-wrap: anywhere; }
.plain-table { width: 100%; border-collapse: collapse; }
.plain-table th, .plain-table td { padding: 8px 12px 8px 0; text-align: left; font-weight: 400; }
.plain-table thead th { color: var(--muted); font-size: 12.5px; font-weight: 600; }
.plain-table tbody tr { border-top: 1px solid var(--line); }
.notice { padding: 12px 16px; border-radius: 10px; background: var(--warn); color: var(--warn-ink);
  font-weight: 550; }
.range-head { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center;
  justify-content: space-between; }
.ranges { border: 1px solid var(--line); border-radius: 8px; }
.banner { padding: 12px 16px; border-radius: 10px; background: var(--bad); color: var(--bad-ink);
  font-weight: 550; }
.outage { display: flex; white-space: pre-wrap; flex-wrap: wrap; }

.table-card { padding: 0; overflow: hidden; }
.table-card > .section-head { padding: 16px 20px; border-bottom: 1px solid var(--line);
  display: flex; align-items: baseline; gap: 12px; }
.table-card .q-table__card { background: transparent; color: inherit; box-shadow: none; width: 100%; }
.table-card .nicegui-table { width: 100%; }
.table-card .q-table th { font-size: 12.5px; font-weight: 600; color: var(--muted); }
.table-card .q-table th, .table-card .q-table td { border-color: var(--line); padding: 10px 10px; }
.table-card .q-table td { font-size: 13.5px; height: auto; }
.table-card .q-table th:first-child, .table-card .q-table td:first-child { padding-left: 20px; }
.table-card .q-table th:last-child, .table-card .q-table td:last-child { padding-right: 20px; }
.table-card .q-table tbody tr:hover { background: color-mix(in srgb, var(--track) 35%, transparent); }
.stack { display: flex; flex-direction: column; gap: 3px; align-items: flex-start; }
.user { max-width: 180px; }
.zero { color: var(--muted); }
.nowrap { white-space: nowrap; }
td .actor { min-width: 9em; }
.progress { width: 192px; display: flex; flex-direction: column; gap: 6px; }
.progress-text { display: flex; justify-content: space-between; gap: 8px; }
.progress-text { white-space: nowrap; }
.failures { color: var(--bad-ink); font-weight: 600; }
.batch-item { width: 100%; padding: 14px 20px; border-bottom: 1px solid var(--line); display: flex;
  flex-direction: column; gap: 8px; min-width: 0; }
.batch-item .progress { width: 100%; }
.batch-item .user { max-width: 100%; font-weight: 600; }
.letter-name { flex: 1; min-width: 0; display: flex; }
.batch-line { display: flex; justify-content: space-between; gap: 12px; align-items: center;
  min-width: 0; }
.batch-notes { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 12px; }
.table-card .q-table__grid-content { margin: 0; display: grid;
  grid-template-columns: repeat(auto-fill, minmax(min(360px, 100%), 1fr)); }
.empty { padding: 44px 20px; display: flex; flex-direction: column; gap: 12px; align-items: center;
  text-align: center; }
.command { display: flex; align-items: center; gap: 4px; max-width: 100%; padding: 6px 6px 6px 14px;
  border: 1px solid var(--line); border-radius: 8px; background: var(--code); }
.q-btn { color: var(--muted); }
.q-dialog .q-btn--flat, .pager .q-btn, .table-card .q-btn { color: var(--accent); }
.table-card .q-table .q-btn { font-size: 12.5px; }
.toolbar .q-btn { padding: 4px 10px; }
.command code { overflow-wrap: anywhere; font-size: 13px; text-align: left; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (max-width: 1600px) {
  .place .q-icon { display: none; }
}
@media (max-width: 1240px) {
  .q-header.topbar { padding-top: 8px; }
  .search { flex: 1 1 160px; }
  .places { order: 3; flex: 1 0 100%; overflow-x: auto; padding: 6px 0; scrollbar-width: none; }
}
/* The name of a cell and one more place need the room of icons and of the search. */
.crowded .place .q-icon { display: none; }
.crowded .places { flex: 0 0 auto; }
.crowded .search { flex: 1 1 72px; max-width: 220px; }
@media (max-width: 1430px) {
  .q-header.topbar.crowded { padding-top: 8px; }
  .crowded .search { flex: 1 1 160px; max-width: none; }
  .crowded .places { order: 3; flex: 1 0 100%; overflow-x: auto; padding: 6px 0; scrollbar-width: none; }
}
@media (max-width: 860px) {
  .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .halves { grid-template-columns: minmax(0, 1fr); }
}
@media (max-width: 600px) {
  .page { padding: 16px; gap: 14px; }
  .cards, .halves { gap: 12px; }
  .card { padding: 14px 16px; }
  .table-card { padding: 0; }
  .filters { grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); padding: 14px 16px; }
  .table-card > .section-head, .batch-item { padding-left: 16px; padding-right: 16px; }
  .q-header.topbar { padding: 8px 16px 0; }
  .search { order: 2; flex: 1 0 100%; }
  .crowded .brand { flex: 1 0 100%; margin-bottom: 6px; }
  .crowded .search { order: 0; flex: 1 1 0; }
  .stat .value { font-size: 25px; }
}
"""

_TONES = "\n".join(
    f".badge-{tone} {{ background: var(--{tone}); color: var(--{tone}-ink); }}\n"
    f".fill-{tone} {{ background: var(--{tone}-fill); }}"
    for tone in Tone
)


def install() -> None:
    """Add the theme to every page."""
    # The bar shows on every request and has no accessible name; live data needs no bar.
    app.config.quasar_config["loadingBar"]["skipHijack"] = True
    ui.add_css(_CSS.replace("TONES", _TONES), shared=True)


def paint() -> None:
    """Set this page's Quasar colours."""
    ui.colors(primary=PRIMARY, dark="#17212f", dark_page="#0e151f")


_BATCH_CSS: Final = """
h1 { overflow-wrap: anywhere; }
.section:empty { display: none; }
.scrolled { max-height: 240px; overflow-y: auto; }
.tiles { display: grid; grid-template-columns: repeat(7, minmax(0, 1fr)); gap: 12px; }
.tile { padding: 10px 14px; color: inherit; text-decoration: none; }
.tile .value { font-size: 22px; }
.tile:hover { border-color: var(--accent); }
.tile[aria-current] { border-color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent); }
.details { padding-top: 8px; }
.details .q-tabs { color: var(--muted); margin: 0 -8px; }
.details .q-tab--inactive { opacity: 1; }
.details .q-tab--active { color: var(--accent); }
.details .q-tab-panels { background: transparent; color: inherit; }
.details .q-tab-panel { padding: 0; }
.table-card .line-table .q-table td { height: 36px; padding-top: 0; padding-bottom: 0; }
.table-card .line-table .q-table th { padding-top: 6px; padding-bottom: 6px; }
.line-table .badges { flex-wrap: nowrap; }
.line-table .ellipsis { display: block; }
.line-table .error { max-width: 240px; }
.line-item .error { max-width: 100%; }
.facts .wide { grid-column: span 2; }
.reasons { margin: 0; padding-left: 20px; }
.batch-head { display: flex; flex-wrap: wrap; gap: 12px 24px; align-items: center; }
.batch-head .spacer { flex: 1; }
.batch-head .q-btn { padding: 4px 12px; border: 1px solid var(--line); color: var(--accent); }
.batch-head .q-btn.dangerous { color: var(--bad-ink); }
.batch-table .q-table { table-layout: auto; }
.table-card .batch-table .q-table td { height: 36px; padding: 0; }
.table-card .batch-table .q-table th { padding: 6px 8px; }
.table-card .batch-table .q-table th:first-child:not(.q-table--col-auto-width) { padding-left: 20px; }
.table-card .batch-table .q-table th:last-child { padding-right: 20px; }
.table-card .batch-table .q-table td:first-child:not(.q-table--col-auto-width) { padding-left: 12px; }
.table-card .batch-table .q-table td:last-child { padding-right: 12px; }
.batch-table .q-table td.q-table--col-auto-width { padding-left: 16px; }
.batch-table .cell { display: flex; align-items: center; height: 36px; padding: 0 8px; min-width: 0;
  color: inherit; text-decoration: none; }
.batch-table .cell.link { color: var(--accent); }
.batch-table .cell.link:hover { text-decoration: underline; }
.batch-table .text-right .cell { justify-content: flex-end; }
.batch-table .cell .ellipsis { max-width: 130px; }
.batch-table .cells { display: flex; align-items: center; }
.batch-table .progress { width: 164px; gap: 3px; }
.batch-table .batch-item { gap: 5px; padding-top: 10px; padding-bottom: 8px; }
.batch-table .batch-item .progress { width: 100%; }
.batch-item .model { flex: 1; min-width: 40px; }
.batch-table .progress-text { line-height: 16px; }
.batch-table .progress-text .ellipsis { max-width: none; }
.batch-table .bar { height: 4px; }
.sla { display: inline-flex; gap: 6px; align-items: center; white-space: nowrap; }
.bar > span { height: 100%; }
.origin { max-width: 110px; }
.cell-table .q-table td { vertical-align: top; }
.cell-table .q-table tbody td.continued { border-bottom-color: transparent; }
.cell-table .figure { display: flex; gap: 6px; align-items: center; white-space: nowrap; }
.cell-table .figure .ellipsis { max-width: 140px; }
.cell-table .batch-line { align-items: flex-start; }
.cell-table .stack { align-items: stretch; }
.cell-table .stack.ending { align-items: flex-end; text-align: right; }
.cell-table .stack > .badge { align-self: flex-start; }
.cell-table .stack.ending > .badge { align-self: flex-end; }
.cell-table .bar { height: 4px; min-width: 72px; }
.cell-table .stale { color: var(--muted); }
.cell-table .stale .bar span { background: var(--neutral-fill); }
.cell-table .note { min-width: 130px; max-width: 220px; white-space: normal; overflow-wrap: anywhere; }
.cell-table .fleet-name { max-width: 160px; }
.cell-head { display: flex; align-items: center; gap: 8px; font-weight: 600; }
.cell-table .figures { margin: 0; }
.copy.q-btn { color: var(--muted); }
.sorting { display: inline-flex; align-items: center; gap: 2px; padding: 0; border: 0;
  background: none; color: inherit; font: inherit; cursor: pointer; white-space: nowrap; }
.sorting:hover, [aria-sort] .sorting { color: var(--ink); }
.sorting .q-icon { font-size: 15px; }
.empty-line { display: flex; gap: 8px; justify-content: center; padding: 36px 20px;
  color: var(--muted); }
.batch-item { position: relative; }
.batch-item.opens > .batch-line:first-of-type > a::after { content: ""; position: absolute; inset: 0; }
.batch-item.opens .copy, .batch-item.opens .batch-choice { z-index: 1; }
.batch-choice { position: absolute; left: 14px; }
.batch-choice + .batch-line { padding-left: 28px; }
.card.section > div > .progress-text { flex-wrap: wrap; white-space: normal; }
.facts dt { color: var(--muted); font-size: 12.5px; }
.facts dd { overflow-wrap: anywhere; }
.bar.big { height: 12px; border-radius: 6px; }
.timeline { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); margin: 0;
  padding: 0; list-style: none; }
.timeline li { position: relative; padding: 22px 12px 0 0; }
.timeline li::before { content: ""; position: absolute; top: 6px; left: 0; right: 0; height: 2px;
  background: var(--line); }
.timeline li::after { content: ""; position: absolute; top: 0; left: 0; width: 14px; height: 14px;
  border-radius: 50%; border: 3px solid var(--card); background: var(--neutral-fill); }
.timeline li.good::after { background: var(--good-fill); }
.timeline li.info::after { background: var(--info-fill); }
.timeline li.bad::after { background: var(--bad-fill); }
.timeline li.bad .when, .timeline li.bad .what { color: var(--bad-ink); }
.timeline .what { font-weight: 600; }
.notes, .errors { margin: 0; padding: 0; list-style: none; display: flex; flex-direction: column;
  gap: 8px; }
.notes li { padding: 8px 12px; border-left: 4px solid var(--warn-fill); border-radius: 6px;
  background: var(--warn); color: var(--warn-ink); overflow-wrap: anywhere; }
.notes li.escalated { border-color: var(--dedicated-fill); background: var(--dedicated);
  color: var(--dedicated-ink); }
.errors li { display: flex; gap: 12px; overflow-wrap: anywhere; }
.errors .count { font-weight: 650; white-space: nowrap; color: var(--bad-ink); }
.banner.plain { background: var(--info); color: var(--info-ink); }
.files { display: flex; flex-wrap: wrap; gap: 6px 16px; }
.file { display: flex; flex-direction: column; }
.tabs { display: flex; flex-wrap: wrap; gap: 4px; padding: 12px 20px; }
.table-tools { display: flex; flex-wrap: wrap; gap: 0 12px; align-items: center;
  justify-content: space-between; border-bottom: 1px solid var(--line); }
.table-tools .q-field { flex: 1 1 240px; margin: 10px 20px; }
.tabs.apart { padding: 0; }
.table-card .q-btn.act { color: var(--accent); }
.q-dialog .card.dialog.form { width: min(560px, 94vw); }
.dialog.form .fields { gap: 18px 12px; }
.meter { min-width: 96px; display: flex; flex-direction: column; gap: 4px; }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px 20px; }
.figure-line { display: flex; flex-direction: column; min-width: 0; }
.table-note { display: block; padding: 12px 20px; border-top: 1px solid var(--line); }
.tab { padding: 5px 12px; border-radius: 999px; color: var(--muted); text-decoration: none;
  font-weight: 550; }
.tab:hover { background: var(--track); color: var(--ink); }
.tab[aria-current] { background: var(--info); color: var(--info-ink); }
.q-dialog .drawer { width: min(640px, 100vw); height: 100%; max-height: 100vh; overflow-y: auto;
  border-radius: 0; color: var(--ink); }
.q-dialog .q-dialog__inner--right { padding: 0; }
.drawer .source { max-height: 44vh; }
.line-item { padding: 8px 16px; border-bottom: 1px solid var(--line); display: flex; gap: 6px;
  flex-direction: column; min-width: 0; }
.sign-in { max-width: 420px; padding-top: 12vh; }
.sign-in .field { display: flex; flex-direction: column; gap: 6px; }
.sign-in input { padding: 9px 12px; border: 1px solid var(--muted); border-radius: 8px;
  background: var(--page); color: var(--ink); font: inherit; }
.primary { padding: 10px 16px; text-align: center; text-decoration: none; border: 0; border-radius: 8px; background: #1e4f8f; color: #fff;
  font: inherit; font-weight: 600; cursor: pointer; }
@media (max-width: 860px) {
  .tiles { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 8px; }
  .tile { padding: 8px 8px; font-size: 12px; }
  .tile .value { font-size: 18px; }
  .timeline { grid-auto-flow: row; }
  .timeline li { padding: 0 0 14px 26px; }
  .timeline li::before { top: 8px; bottom: -8px; left: 6px; right: auto; width: 2px; height: auto; }
  .timeline li:last-child::before { display: none; }
  .timeline li::after { top: 4px; }
  .tabs { padding: 10px 14px; }
}
"""


def install_batches() -> None:
    """Add the page-specific styles to every page."""
    ui.add_css(_BATCH_CSS, shared=True)
