"""A running stack records when each component was last seen working."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowtide.events.model import EventType
from lowtide.status.last_seen import TICK
from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from tests.e2e.stacks import LocalStack

COMPONENTS = {
    *(("function", name) for name in ("upload", "create_batch", "read")),
    *(("function", name) for name in ("split", "finalize", "schedule", "infer_spot")),
    *(("sent", type_.value) for type_ in EventType if type_.startswith("dev.lowtide.batch.")),
    *(("delivered", type_) for type_ in (EventType.BATCH_CREATED, EventType.BATCH_DRAINED, TICK)),
    ("engine", "spot"),
}
RECENT = "SELECT component, name FROM last_seen WHERE succeeded_at > now() - interval '1 minute'"


def test_every_working_component_is_recorded(stack: LocalStack) -> None:
    source = chat_file(20)
    batch = stack.submit(stack.upload(source))
    stack.finish(batch, source, answers=simulated_answer)
    until(
        lambda: {(row.component, row.name) for row in stack.query(RECENT)} >= COMPONENTS,
        "every component has a recent observation",
    )
