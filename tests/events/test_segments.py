"""Events about segments, as the functions read them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from cloudevents.http import CloudEvent

from lowtide.core.ids import DEFAULT_TENANT, BatchId, new_id
from lowtide.events.inbox import batch_of, segment_of
from lowtide.events.model import EventType, batch_event, segment_event

TRIGGERS = Path(__file__).parents[2] / "knative" / "base" / "triggers.yaml"


def _received(data: object) -> CloudEvent:
    attributes = {"id": "1", "source": "/x", "type": EventType.SEGMENT_DRAINED.value}
    return CloudEvent(attributes, data)


@pytest.mark.parametrize("segment", [None, 1, 400])
def test_event_carries_its_segment(segment: int | None) -> None:
    batch = BatchId(new_id())
    identity = (new_id(), EventType.SEGMENT_DRAINED, DEFAULT_TENANT, batch)
    event = batch_event(*identity) if segment is None else segment_event(*identity, segment)
    received = _received(dict(event.data))
    assert (batch_of(received), segment_of(received)) == (batch, segment)


@pytest.mark.parametrize("data", [None, "x", {"segment": "2"}, {"segment": True}, {"segment": 1.5}])
def test_event_without_a_valid_segment_is_about_the_batch(data: object) -> None:
    assert segment_of(_received(data)) is None


def test_finalize_receives_its_events() -> None:
    triggers = list(yaml.safe_load_all(TRIGGERS.read_text()))
    received = {
        trigger["spec"]["filter"]["attributes"]["type"]
        for trigger in triggers
        if trigger["spec"]["subscriber"]["ref"]["name"] == "finalize"
    }
    assert received == {
        EventType.BATCH_DRAINED.value,
        EventType.SEGMENT_DRAINED.value,
        EventType.EXPORT_REQUESTED.value,
    }
