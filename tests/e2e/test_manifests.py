"""`lowtide up` runs what kubectl would apply from the development overlay."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from sqlalchemy import text

from lowtide.local.ports import HOST
from lowtide.local.workloads import OVERLAY
from manifests.overlays import rendered
from manifests.pods import templates
from tests.e2e.conftest import SETTINGS
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.stacks import LocalStack

# Variables that the local machine sets itself: ports, addresses and the grace period.
SUPPLIED = {
    "PORT",
    "LOWTIDE_API_URL",
    "LOWTIDE_COLD_START",
    "K_SINK",
    "LOWTIDE_OBJECT_STORE_URL",
    "LOWTIDE_PORTAL_HOST",
    "LOWTIDE_PORTAL_PORT",
    "LOWTIDE_WORKER_GRACE",
    "NICEGUI_STORAGE_PATH",
}
# Local replacements for parts of a cluster.
HELPERS = {"postgres", "broker", "router", "prometheus", "alertmanager"}
DOCUMENTS = rendered(OVERLAY)
TEMPLATES = {
    template.owner["metadata"]["name"]: template
    for template in templates(DOCUMENTS)
    if template.owner["kind"] != "Job"
}
SCALERS = [one["spec"] for one in DOCUMENTS if one["kind"] == "ScaledObject"]
SHOWN = 1000
SEEN = """
CREATE TABLE local_broker.seen (trigger text, type text);
CREATE FUNCTION local_broker.see() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
  'BEGIN INSERT INTO local_broker.seen VALUES (NEW.trigger, NEW.headers->>''ce-type''); RETURN NEW; END';
CREATE TRIGGER see AFTER INSERT ON local_broker.deliveries
  FOR EACH ROW EXECUTE FUNCTION local_broker.see();
"""
WAITING = """
WITH batch AS (
  INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint,
    completion_window, status, created_at, deadline, total, start_pool)
  SELECT gen_random_uuid(), gen_random_uuid(), 'waiting', gen_random_uuid(), 'k', '/v1/embeddings',
    '24h', 'in_progress', now(), now() + interval '1 d', 1, :pool
  RETURNING *
)
INSERT INTO queued_runs (batch_id, line, lines, tenant_id, pool, queued_at, deadline, available_at)
SELECT id, 0, '{[0,1)}', tenant_id, :pool, now(), deadline, now() + interval '1 h' FROM batch
"""
UNSEEN = "DROP TABLE local_broker.seen; DROP FUNCTION local_broker.see() CASCADE"


def _config() -> dict[str, str]:
    (config_map,) = (one for one in DOCUMENTS if one["kind"] == "ConfigMap")
    data: dict[str, str] = config_map["data"]
    return data


def test_workloads_run_with_manifest_replica_counts(stack: LocalStack) -> None:
    running = [name for name in stack.programs() if name not in HELPERS]
    scaled = {one["scaleTargetRef"]["name"]: one["maxReplicaCount"] for one in SCALERS}
    for name, template in TEMPLATES.items():
        if name in scaled:
            count = sum(one.rpartition("-")[0] == name for one in running)
            assert count <= scaled[name]
        else:
            assert running.count(name) == template.owner["spec"].get("replicas", 1)
    assert {one if one in TEMPLATES else one.rpartition("-")[0] for one in running} <= set(
        TEMPLATES
    )


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_process_has_command_and_environment_of_its_manifest(stack: LocalStack, name: str) -> None:
    scaled = name.startswith("infer-")
    if scaled:
        _ensure_worker(stack, name.removeprefix("infer-"))
    program = next(
        one
        for one in stack.programs().values()
        if one.name == name or (scaled and one.name.rpartition("-")[0] == name)
    )
    process = psutil.Process(program.pid)
    (container,) = TEMPLATES[name].spec["containers"]
    _, *arguments = container["args"]
    assert process.cmdline()[-len(arguments) :] == arguments
    environment = process.environ()
    expected = {**_config(), **_plain_variables(container)}
    for variable, value in (expected | SETTINGS).items():
        if variable not in SUPPLIED:
            assert environment.get(variable) == value, variable
    for variable in _secret_variables(container):
        assert environment.get(variable), variable
    assert environment["K_SINK"].startswith(f"http://{HOST}:")


def _plain_variables(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


def _secret_variables(container: dict[str, Any]) -> list[str]:
    """Return the variables of Secrets that must exist."""
    references = {
        one["name"]: one["valueFrom"]["secretKeyRef"]
        for one in container["env"]
        if "valueFrom" in one
    }
    return [name for name, reference in references.items() if not reference.get("optional")]


def _ensure_worker(stack: LocalStack, pool: str) -> None:
    """Queue a request that is not yet available in a pool until a worker starts; then delete it."""
    if stack.workers(pool):
        return
    with stack.database.connect() as connection:
        # The batch belongs to no tenant, and its request cannot be claimed.
        connection.execute(text("SET session_replication_role = replica"))
        connection.execute(text(WAITING), {"pool": pool})
    until(lambda: stack.workers(pool), f"a worker starts in {pool}")
    with stack.database.connect() as connection:
        connection.execute(text("DELETE FROM queued_runs WHERE line = 0"))
        connection.execute(text("DELETE FROM batches WHERE user_id = 'waiting'"))


def test_autoscaler_runs_queries_of_scaled_objects(stack: LocalStack) -> None:
    queries: set[str] = set()
    # PostgreSQL shows the first KB of a query.
    expected = {one["triggers"][0]["metadata"]["query"][:SHOWN] for one in SCALERS}

    def observe() -> bool:
        rows = stack.query(
            "SELECT query FROM pg_stat_activity WHERE application_name = 'lowtide-autoscaler'"
        )
        queries.update(row.query[:SHOWN] for row in rows if "waiting_requests(" in row.query)
        return queries >= expected

    until(observe, "every query was observed", within=30)
    assert queries == expected


@pytest.fixture
def recording_stack(stack: LocalStack) -> Iterator[LocalStack]:
    """The shared stack, whose broker records trigger and type of each accepted event."""
    with stack.database.connect() as connection:
        connection.exec_driver_sql(SEEN)
    yield stack
    with stack.database.connect() as connection:
        connection.exec_driver_sql(UNSEEN)


def test_broker_delivers_events_by_trigger_filters(recording_stack: LocalStack) -> None:
    triggers = [one for one in DOCUMENTS if one["kind"] == "Trigger"]
    expected = {
        (one["metadata"]["name"], one["spec"]["filter"]["attributes"]["type"]) for one in triggers
    }
    for event_type in {*(type_ for _, type_ in expected), "dev.lowtide.unknown"}:
        answer = httpx.post(
            f"http://{HOST}:{recording_stack.program('broker').port}/",
            headers={
                "ce-specversion": "1.0",
                "ce-id": str(uuid.uuid4()),
                "ce-type": event_type,
                "ce-source": "/tests",
                "content-type": "application/json",
            },
            json={"batch_id": str(uuid.uuid4()), "tenant_id": str(uuid.uuid4())},
        )
        assert answer.status_code == 202
    deliveries = {
        tuple(row)
        for row in recording_stack.query("SELECT DISTINCT trigger, type FROM local_broker.seen")
    }
    assert deliveries == expected
