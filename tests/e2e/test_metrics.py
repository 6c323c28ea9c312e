"""Metrics of a running stack, under the names that dashboards and alerts use."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import httpx
from prometheus_client.parser import text_string_to_metric_families

from lowtide.local.ports import HOST
from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.waiting import until
from tests.monitoring.queries import exported_names

if TYPE_CHECKING:
    from tests.e2e.stacks import LocalStack

ALL = {"lowtide_build_info"}
WORKER = ALL | {
    "worker_dequeue_total", "worker_completed_total", "worker_failed_total", "worker_idle_seconds",
    "queue_wait_time_seconds_count", "requests_sla_met_total", "requests_sla_violated_total",
    "spot_interruptions_total", "replica_seconds_total", "cost_total", "engine_answers_total",
    "dead_letters_total", "worker_engine_up", "requests_ended_total",
    "engine_prompt_tokens_total", "engine_output_tokens_total", "worker_concurrency",
}  # fmt: skip
SCHEDULER = ALL | {
    "autoscaler_desired_spot_replicas", "autoscaler_desired_dedicated_replicas",
    "autoscaler_max_replicas", "batch_deadline_slack_seconds", "escalations_total",
    "deescalations_total", "revocations_total", "fallbacks_total", "batches_at_risk",
    "queue_depth", "pool_paused",
    "dedicated_replicas_planned", "scheduler_ticks_total", "scheduler_last_tick_timestamp_seconds",
    "leases_reaped_lines_total", "requests_sla_violated_total", "dead_letters_total",
    "queue_oldest_age_seconds", "workers_alive", "outbox_events", "outbox_oldest_age_seconds",
    "audit_outbox_oldest_age_seconds", "partition_days", "retention_waiting_bytes", "retention_overdue_batches",
    "retention_oldest_overdue_seconds",
}  # fmt: skip
API = ALL | {"api_requests_total", "api_request_seconds_bucket"}
# Reported by real engines.
ENGINE = {
    "engine_requests_running", "engine_requests_waiting", "engine_kv_cache_usage_ratio",
    "engine_prefix_cache_queries_total", "engine_prefix_cache_hits_total",
    *(
        f"engine_time_{time}_token_seconds_{part}"
        for time in ("to_first", "per_output")
        for part in ("bucket", "sum", "count")
    ),
}  # fmt: skip
# Exported only after a rate limit, a batch at risk, a dead letter, a measured rate or an engine fault.
SOMETIMES = {
    "api_rate_limited_total", "batch_at_risk_seconds_left", "tenant_dead_letters",
    "replica_rate_lines_per_second", "engine_faults_total", "tenant_quota_used_ratio",
}  # fmt: skip
# Of the front of several cells.
FRONT = {"lowtide_cell_up"}
TENANT = {
    "tenant_open_batches", "tenant_batches_at_risk", "tenant_queue_depth", "tenant_running",
    "tenant_queue_oldest_age_seconds",
}  # fmt: skip
REQUESTS = 200


def scrape(port: int | None) -> dict[str, float]:
    """Return the exported samples by name, summed over their labels."""
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"http://{HOST}:{port}/metrics").text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


def test_processes_export_metrics_of_dashboards_and_alerts(stack: LocalStack) -> None:
    # A worker of an earlier test could stop during this one and take its counts along.
    until(lambda: not stack.workers(), "no worker is left", within=120)
    source = chat_file(REQUESTS)
    latest: dict[int | None, dict[str, float]] = {}

    def completed() -> float:
        for worker in stack.workers():
            with suppress(httpx.TransportError):  # it starts or stops
                latest[worker.health_port] = scrape(worker.health_port)
        # A worker that is starting exports nothing yet.
        return sum(worker.get("worker_completed_total", 0.0) for worker in latest.values())

    batch = stack.submit(stack.upload(source))
    until(lambda: completed() == REQUESTS, "every request is counted", within=120)
    completed()
    stack.finish(batch, source, answers=simulated_answer)
    workers = list(latest.values())
    # One that has ended no request yet exports only some names.
    assert set().union(*workers) >= WORKER
    total = {name: sum(worker.get(name, 0.0) for worker in workers) for name in WORKER}
    assert total["worker_completed_total"] == REQUESTS
    assert total["requests_sla_met_total"] == REQUESTS
    assert total["requests_ended_total"] == REQUESTS
    assert total["queue_wait_time_seconds_count"] == REQUESTS
    # Every tenth attempt is interrupted and runs again.
    assert total["spot_interruptions_total"] > 0
    assert total["engine_answers_total"] > REQUESTS
    assert total["requests_sla_violated_total"] == 0
    assert total["cost_total"] > 0
    assert total["engine_prompt_tokens_total"] > REQUESTS
    assert total["engine_output_tokens_total"] > REQUESTS
    # The simulated engine reports nothing of itself.
    assert not any(worker.keys() & ENGINE for worker in workers)

    scheduler = stack.program("schedule").health_port
    # The next tick handles an open batch.
    batch = stack.submit(stack.upload(source))
    ticks = scrape(scheduler).get("scheduler_ticks_total", 0.0)
    # A tick is counted before its snapshot is published.
    until(lambda: scrape(scheduler)["scheduler_ticks_total"] > ticks + 1, "two ticks")
    scheduled = scrape(scheduler)
    assert scheduled.keys() >= SCHEDULER
    stack.follow(batch)
    read, portal = (scrape(stack.program(name).health_port) for name in ("read", "portal"))
    assert read.keys() >= API
    assert portal.keys() >= ALL
    assert exported_names() - SOMETIMES - FRONT - TENANT - ENGINE <= (
        WORKER | SCHEDULER | API | {"queue_wait_time_seconds_bucket"}
    )
    assert any("queue_wait_time_seconds_bucket" in worker for worker in workers)
