"""`lowtide explain`: what a batch waits for, or what limited it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from lowtide.cli.access import access
from lowtide.cli.options import AllTenants, DataDir, Json, Key, TenantName, Url
from lowtide.cli.output import moment, print_json, print_record
from lowtide.core.durations import duration


def explain(
    batch_id: Annotated[str, typer.Argument(metavar="ID", help="Batch id (batch_…).")],
    tenant: TenantName = None,
    all_tenants: AllTenants = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Explain what a batch waits for or what limited it, and when it ends."""
    with access(url, key, data_dir, tenant, all_tenants=all_tenants) as source:
        explanation = source.explain(batch_id)
    print_json(explanation) if as_json else print_record(dict(rows_of(explanation)))


def rows_of(explanation: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the name and the text of each thing to show, the limiting factor first."""
    rows = [("limiting", explanation["limiting"]["text"])]
    if explanation["contributing"]:
        rows.append(("also", "; ".join(each["text"] for each in explanation["contributing"])))
    if (end := explanation["expected_end"]) is not None:
        rows.append(("expected end", _range(end)))
    if explanation["rate"] is not None:
        rows.append(("rate", f"{explanation['rate']:.3g} requests/s"))
    if explanation["waiting"] or explanation["running"]:
        rows.append(
            ("requests", f"{explanation['waiting']:,} wait, {explanation['running']:,} run")
        )
    if explanation["waiting_share"] is not None:
        rows.append(("time waiting", f"{explanation['waiting_share']:.0%} of a request's time"))
    if explanation["retry_share"]:
        rows.append(("retries", f"{explanation['retry_share']:.1%} of all attempts"))
    if (comparison := explanation["comparison"]) is not None:
        rows.append(("earlier runs", comparison["text"]))
    if explanation["advice"]:
        rows.append(("faster", "; ".join(_advice(each, end) for each in explanation["advice"])))
    return rows


def _range(end: dict[str, Any]) -> str:
    if end["likely"] is None:
        return "unknown"
    until = "unknown" if end["high"] is None else moment(end["high"])
    return f"{moment(end['likely'])} ({moment(end['low'])} to {until})"


def _advice(advice: dict[str, Any], end: dict[str, Any] | None) -> str:
    text: str = advice["text"]
    if advice["expected_end"] is None:
        return text
    likely = None if end is None else end["likely"]
    if likely is None:
        return f"{text} (then {moment(advice['expected_end'])})"
    saved = datetime.fromtimestamp(likely, UTC) - datetime.fromtimestamp(
        advice["expected_end"], UTC
    )
    return f"{text} ({duration(saved)} sooner)" if saved.total_seconds() >= 1 else text
