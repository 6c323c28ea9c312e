"""What the running stack exports, by the names that dashboards and alerts use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
from prometheus_client.parser import text_string_to_metric_families

from lowtide.local.ports import HOST
from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from tests.e2e.stacks import LocalStack

WORKER = {
    "worker_dequeue_total", "worker_completed_total", "worker_failed_total", "worker_idle_seconds",
    "queue_wait_time_seconds_count", "requests_sla_met_total", "requests_sla_violated_total",
    "spot_interruptions_total", "replica_seconds_total", "cost_total",
}  # fmt: skip
SCHEDULER = {
    "autoscaler_desired_spot_replicas", "autoscaler_desired_dedicated_replicas",
    "batch_deadline_slack_seconds", "escalations_total", "batches_at_risk", "queue_depth",
    "scheduler_ticks_total", "leases_reaped_lines_total", "requests_sla_violated_total",
}  # fmt: skip
LINES = 200


def scrape(port: int | None) -> dict[str, float]:
    """Return the exported samples by name, summed over their labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"http://{HOST}:{port}/metrics").text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_workers_and_the_scheduler_export_what_dashboards_read(stack: LocalStack) -> None:
    before = [scrape(worker.health_port) for worker in stack.workers()]
    source = chat_file(LINES)
    stack.finish(stack.submit(stack.upload(source)), source, answers=simulated_answer)
    workers = [scrape(worker.health_port) for worker in stack.workers()]
    assert workers
    assert all(worker.keys() >= WORKER for worker in workers)
    total = {name: sum(worker[name] for worker in workers) for name in WORKER}
    known = {name: sum(worker[name] for worker in before) for name in WORKER}
    assert total["worker_completed_total"] - known["worker_completed_total"] == LINES
    assert total["requests_sla_met_total"] - known["requests_sla_met_total"] == LINES
    assert total["queue_wait_time_seconds_count"] - known["queue_wait_time_seconds_count"] == LINES
    # Every tenth attempt was interrupted, and ran again.
    assert total["spot_interruptions_total"] > known["spot_interruptions_total"]
    assert total["requests_sla_violated_total"] == 0
    assert total["cost_total"] > 0
    scheduler = stack.program("schedule").health_port
    until(lambda: scrape(scheduler)["scheduler_ticks_total"] > 0, "a tick")
    assert scrape(scheduler).keys() >= SCHEDULER
