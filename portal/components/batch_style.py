"""How the pages of batches and the way in look, beyond what every page has."""

from __future__ import annotations

from typing import Final

from nicegui import ui

_CSS: Final = """
h1 { overflow-wrap: anywhere; }
.section:empty { display: none; }
.scrolled { max-height: 320px; overflow-y: auto; }
.cards.five { grid-template-columns: repeat(5, minmax(0, 1fr)); }
.batch-head { display: flex; flex-wrap: wrap; gap: 12px 24px; align-items: center; }
.batch-head .spacer { flex: 1; }
.batch-head .q-btn { padding: 4px 12px; border: 1px solid var(--line); color: var(--bad-ink); }
.batch-item { position: relative; }
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
.line-item { padding: 12px 20px; border-bottom: 1px solid var(--line); display: flex; gap: 6px;
  flex-direction: column; min-width: 0; }
.sign-in { max-width: 420px; padding-top: 12vh; }
.sign-in .field { display: flex; flex-direction: column; gap: 6px; }
.sign-in input { padding: 9px 12px; border: 1px solid var(--muted); border-radius: 8px;
  background: var(--page); color: var(--ink); font: inherit; }
.primary { padding: 10px 16px; border: 0; border-radius: 8px; background: #1e4f8f; color: #fff;
  font: inherit; font-weight: 600; cursor: pointer; }
@media (max-width: 860px) {
  .cards.five { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .timeline { grid-auto-flow: row; }
  .timeline li { padding: 0 0 14px 26px; }
  .timeline li::before { top: 8px; bottom: -8px; left: 6px; right: auto; width: 2px; height: auto; }
  .timeline li:last-child::before { display: none; }
  .timeline li::after { top: 4px; }
  .tabs { padding: 10px 14px; }
}
"""


def install() -> None:
    """Give the pages their style."""
    ui.add_css(_CSS, shared=True)
