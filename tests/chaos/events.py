"""Duplicated and forged events."""

from __future__ import annotations

import json

import httpx

_TYPES = {
    "split": "dev.lowtide.batch.created",
    "finalize": "dev.lowtide.batch.drained",
    "schedule": "dev.knative.sources.ping",
    "broker": "dev.lowtide.batch.created",
}


def post(url: str, how: str, target: str, batch: str, pick: int) -> None:
    """Post a duplicate of a real event, or a forged one, malformed or of an unknown batch."""
    type_ = _TYPES[target]
    if how == "duplicate":
        headers = {
            "ce-specversion": "1.0",
            "ce-id": f"chaos-{pick}",
            "ce-source": "/chaos",
            "ce-type": type_,
            "ce-subject": batch,
            "content-type": "application/json",
        }
        _send(url, headers, json.dumps({"batch_id": batch}).encode())
        return
    event = {"specversion": "1.0", "id": f"forged-{pick}", "source": "/chaos", "type": type_}
    forged: list[tuple[dict[str, str], bytes]] = [
        (
            {"content-type": "application/cloudevents+json"},
            json.dumps({**event, "extra": {"an": "object"}, "data": {"batch_id": batch}}).encode(),
        ),
        ({"content-type": "application/json", "ce-id": "1"}, b"{}"),
        ({"content-type": "application/cloudevents+json"}, b"\xff{"),
        (
            {"content-type": "application/cloudevents+json"},
            json.dumps({**event, "data": {"batch_id": "batch_" + "f" * 32}}).encode(),
        ),
        (
            {"content-type": "application/cloudevents+json"},
            json.dumps({**event, "data": ["no", "batch"]}).encode(),
        ),
    ]
    _send(url, *forged[pick % len(forged)])


def _send(url: str, headers: dict[str, str], body: bytes) -> None:
    # A server that is down or slow is the effect of another fault.
    try:
        httpx.post(url, headers=headers, content=body, timeout=10)
    except httpx.HTTPError:
        return
