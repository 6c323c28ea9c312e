"""A stack with two fleets: each has its own workers, engine and bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psutil

from tests.conformance.engine import commanded_engine
from tests.conformance.lines import held, jsonl, request
from tests.e2e.stacks import running
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.stacks import LocalStack

FLEETS = """\
fleets:
  held:
    models: [tide-9]
    engine: {{kind: openai, url: "{url}"}}
    spot: {{max_replicas: 2}}
  quick:
    models: ["tide-*"]
    spot: {{max_replicas: 3}}
"""
REQUESTS = 40


def of_model(model: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines with a model and custom_ids of their own."""
    return [
        {**line, "custom_id": f"{model} {number}", "body": {**line["body"], "model": model}}
        for number, line in enumerate(lines)
    ]


def workers(stack: LocalStack, fleet: str) -> list[psutil.Process]:
    """Return the ready workers of a fleet's spot pool."""
    return [
        psutil.Process(one.pid)
        for one in stack.workers(f"spot-{fleet}")
        if one.pid is not None and one.state == "ready"
    ]


def test_each_fleet_is_scaled_by_its_own_requests(tmp_path: Path) -> None:
    file = tmp_path / "fleets.yaml"
    with commanded_engine() as engine:
        file.write_text(FLEETS.format(url=engine.url))
        with running({"LOWTIDE_FLEETS": str(file)}) as stack:
            assert not [name for name in stack.programs() if name.startswith("infer-")]
            source = jsonl(
                *of_model("tide-9", held("fleets", REQUESTS)),
                *of_model("tide-1", [request(str(number)) for number in range(REQUESTS)]),
            )
            batch = stack.submit(stack.upload(source))
            # The requests of one fleet wait for their engine; those of the other do not wait for them.
            until(
                lambda: stack.batch(batch)["request_counts"]["completed"] == REQUESTS,
                "the quick fleet has answered",
            )
            until(lambda: len(workers(stack, "held")) == 2, "both workers of the held fleet run")
            for one in workers(stack, "held"):
                assert one.environ()["LOWTIDE_FLEET"] == "held"
                assert one.environ()["LOWTIDE_ENGINE_URL"] == engine.url
            names = {name for name in stack.programs() if name.startswith("infer-")}
            assert names <= {
                *(f"infer-spot-held-{number}" for number in (1, 2)),
                *(f"infer-spot-quick-{number}" for number in (1, 2, 3)),
            }
            engine.release("fleets")
            assert stack.follow(batch)[-1]["request_counts"]["completed"] == 2 * REQUESTS
