"""Batches of the API as rows and facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lowtide.cli.output import moment

if TYPE_CHECKING:
    from collections.abc import Mapping

    Batch = Mapping[str, Any]


COLUMNS: Final = (
    "id", "user", "model", "status", "requests", "completed", "failed", "sla", "created",
)  # fmt: skip
TENANT: Final = "tenant"
_ENDED: Final = ("completed_at", "failed_at", "expired_at", "cancelled_at")
_MAX_ERRORS: Final = 5


def columns(*, tenants: bool) -> tuple[str, ...]:
    """Return the columns of a list of batches."""
    return (COLUMNS[0], TENANT, *COLUMNS[1:]) if tenants else COLUMNS


def row(batch: Batch, *, tenants: bool) -> list[object]:
    """Return the values of `columns`."""
    extra = batch["x_lowtide"]
    outcomes = extra["outcomes"]
    values: dict[str, object] = {
        "id": batch["id"],
        TENANT: batch.get(TENANT),
        "user": extra.get("user"),
        "model": batch.get("model"),
        "status": batch["status"],
        "requests": batch["request_counts"]["total"],
        "completed": outcomes["completed"],
        "failed": outcomes["failed"],
        "sla": extra.get("sla_state"),
        "created": moment(batch["created_at"]),
    }
    return [values[name] for name in columns(tenants=tenants)]


def facts(batch: Batch) -> dict[str, object]:
    """Return what `lowtide show` prints."""
    extra = batch["x_lowtide"]
    ended = next((batch[name] for name in _ENDED if batch.get(name)), None)
    tenant = {TENANT: batch[TENANT]} if TENANT in batch else {}
    return {
        "id": batch["id"],
        **tenant,
        "user": extra.get("user"),
        "model": batch.get("model"),
        "endpoint": batch["endpoint"],
        "status": batch["status"],
        "sla": extra.get("sla_state"),
        "risk": _risk(extra.get("risk")),
        "priority": extra.get("priority") or None,
        **outcomes(batch),
        "window": batch["completion_window"],
        "created": moment(batch["created_at"]),
        "started": moment(batch.get("in_progress_at")),
        "deadline": moment(batch.get("expires_at")),
        "eta": moment(extra.get("eta")),
        "ended": moment(ended),
        "pools": ", ".join(f"{pool} {count}" for pool, count in extra.get("pools", {}).items()),
        "interruptions": extra.get("interruptions"),
        "retries": extra.get("retries"),
        "escalations": extra.get("escalations"),
        "cost": cost(extra["cost"]),
        "input": batch["input_file_id"],
        "imported from": extra.get("input_url"),
        "output": batch.get("output_file_id"),
        "errors": batch.get("error_file_id"),
        "export": _export(extra.get("export")),
        "metadata": ", ".join(f"{k}={v}" for k, v in (batch.get("metadata") or {}).items()),
        "problems": "; ".join(_problems(batch)),
    }


def outcomes(batch: Batch) -> dict[str, int]:
    """Return the requests of a batch by state."""
    by_state = batch["x_lowtide"]["outcomes"]
    named = {name.replace("_", " "): count for name, count in by_state.items()}
    return {"requests": batch["request_counts"]["total"], **named}


def cost(amounts: Mapping[str, Any]) -> str:
    """Format a batch's cost, and its cost on dedicated alone."""
    total, alone = amounts["total"], amounts["all_dedicated"]
    return f"{total:.4g} {amounts['currency']} (all on dedicated: {alone:.4g})"


def _risk(risk: Mapping[str, Any] | None) -> str | None:
    if risk is None:
        return None
    return f"{risk['text']}, since {moment(risk['since'])}"


def _export(export: Mapping[str, Any] | None) -> str | None:
    if export is None:
        return None
    error = f": {export['error']}" if export["error"] else ""
    return f"{export['url']} {export['state']}{error}"


def _problems(batch: Batch) -> list[str]:
    problems = (batch.get("errors") or {}).get("data") or []
    return [
        f"line {problem['line']}: {problem['message']}"
        if problem.get("line")
        else problem["message"]
        for problem in problems[:_MAX_ERRORS]
    ]
