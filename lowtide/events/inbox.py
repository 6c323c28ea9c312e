"""Reading the CloudEvents that functions receive."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lowtide.domain.ids import BatchId, parse_batch_id

if TYPE_CHECKING:
    from cloudevents.http import CloudEvent

_log = logging.getLogger(__name__)


def batch_of(event: CloudEvent) -> BatchId | None:
    """Return the batch that an event is about.

    None for an event that names none: it would fail the same way at every retry, so it is logged
    and taken.
    """
    data = event.get_data()
    text = data.get("batch_id") if isinstance(data, dict) else None
    batch = parse_batch_id(text) if isinstance(text, str) else None
    if batch is None:
        _log.warning("event.malformed", extra={"event_id": str(event["id"])[:100]})
    return batch
