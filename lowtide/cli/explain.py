"""`lowtide explain`: what a batch waits for, or what limited it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table

from lowtide.cli.output import OUT, DataDir, Json, print_json
from lowtide.cli.stack import Key, Url, api_errors, connect
from lowtide.core.durations import duration

if TYPE_CHECKING:
    from openai import OpenAI


def explain(
    batch_id: Annotated[str, typer.Argument(help="Id of the batch.")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Explain what a batch waits for or what limited it, and when it ends."""
    with api_errors():
        explanation = _read(connect(url, key, data_dir), batch_id)
    if as_json:
        print_json(explanation)
        return
    OUT.print(f"{explanation['limiting']['text']}.", markup=False, highlight=False, soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    for name, value in rows_of(explanation):
        table.add_row(name, value)
    OUT.print(table, highlight=False, soft_wrap=True)


def rows_of(explanation: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the name and the text of each thing to show below the limiting factor."""
    rows = [("also", each["text"]) for each in explanation["contributing"]]
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
    rows += [("faster", _advice(each, end)) for each in explanation["advice"]]
    return rows


def _read(client: OpenAI, batch_id: str) -> dict[str, Any]:
    answer = client.get(f"/batches/{batch_id}/explain", cast_to=object)
    return cast("dict[str, Any]", answer)


def _range(end: dict[str, Any]) -> str:
    if end["likely"] is None:
        return "unknown"
    until = "unknown" if end["high"] is None else _time(end["high"])
    return f"{_time(end['likely'])} ({_time(end['low'])} to {until})"


def _advice(advice: dict[str, Any], end: dict[str, Any] | None) -> str:
    text: str = advice["text"]
    if advice["expected_end"] is None:
        return text
    likely = None if end is None else end["likely"]
    if likely is None:
        return f"{text} (then {_time(advice['expected_end'])})"
    saved = datetime.fromtimestamp(likely, UTC) - datetime.fromtimestamp(
        advice["expected_end"], UTC
    )
    return f"{text} ({duration(saved)} sooner)" if saved.total_seconds() >= 1 else text


def _time(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
