"""`lowtide usage`: use of a tenant's limits, its cost this month, and paused pools."""

from __future__ import annotations

from typing import Any

from lowtide.cli.access import access
from lowtide.cli.options import DataDir, Json, Key, TenantName, Url
from lowtide.cli.output import moment, print_json, print_record
from lowtide.core.pools import DEFAULT_FLEET, FleetPool, Pool


def usage(
    tenant: TenantName = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show a tenant's limits and their use, its cost this month, and paused pools."""
    with access(url, key, data_dir, tenant, all_tenants=False) as source:
        body = source.usage()
    print_json(body) if as_json else print_record(_facts(body))


def _facts(body: dict[str, Any]) -> dict[str, str]:
    month = body["month"]
    return {
        "tenant": body["tenant"],
        "requests per minute": _use(body["requests_per_minute"]),
        "active batches": _use(body["active_batches"]),
        "unfinished requests": _use(body["unfinished_requests"]),
        "running requests": _use(body["running_requests"]),
        "enqueued tokens": _use(body["enqueued_tokens"]),
        "tokens per day": _use(body["tokens_per_day"]),
        "spend per month": _use(body["spend_per_month"]),
        "this month": f"{month['requests']:,} requests since {moment(month['since'])}",
        "tokens": f"{month['input_tokens']:,} input, {month['output_tokens']:,} output",
        "cost": "; ".join(map(_cost, month["costs"])) or "none",
        "paused": ", ".join(
            f"{_place(pause)} since {moment(pause['since'])}" for pause in body["paused_pools"]
        )
        or "no pool",
    }


def _place(pause: dict[str, Any]) -> str:
    return FleetPool(pause.get("fleet", DEFAULT_FLEET), Pool(pause["pool"])).label


def _use(use: dict[str, float | None]) -> str:
    used = None if use["used"] is None else f"{round(use['used'], 2):,}"
    if use["limit"] is None:
        return "no limit" if used is None else f"{used}, no limit"
    return f"{used} of {use['limit']:,}"


def _cost(cost: dict[str, Any]) -> str:
    return (
        f"{cost['total']:.4g} {cost['currency']} (spot {cost['spot']:.4g}, dedicated "
        f"{cost['dedicated']:.4g}; all on dedicated: {cost['all_dedicated']:.4g})"
    )
