from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from sqlalchemy import text

from lowtide.local.autoscaler import Memory, decide, policy
from lowtide.local.bootstrap import addresses, bootstrap
from lowtide.local.database import engine
from lowtide.local.files import SUPERUSER, read_or_create
from lowtide.local.manifests import ScaledObject
from lowtide.local.processes import Log
from lowtide.local.replicas import ReplicaSet, Scaler, connection_of
from lowtide.local.workloads import Manifests, load, workloads
from manifests.overlays import rendered

from .conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

    from lowtide.local.database import EmbeddedPostgres
    from lowtide.local.processes import Process


@pytest.fixture(scope="module")
def manifests() -> Manifests:
    return load(ROOT)


@pytest.fixture(scope="module")
def scalers(
    server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory, manifests: Manifests
) -> Iterator[dict[str, Scaler]]:
    """Scalers of the shipped ScaledObjects on the real schema, connected as KEDA's role."""
    data_dir: Path = tmp_path_factory.mktemp("stack")
    secrets = read_or_create(data_dir)
    secrets.passwords[SUPERUSER] = server.cluster.password
    bootstrap(server.cluster, server.port, secrets)
    bootstrap(server.cluster, server.port, secrets)  # every start repeats it
    url = addresses(server.cluster, server.port, secrets).by_role["lowtide_autoscaler"]
    made = {}
    for scaler in manifests.all(ScaledObject):
        name = scaler.spec.scale_target_ref.name
        connection = connection_of(scaler, manifests, {"lowtide-database": {"autoscaler-url": url}})
        workload = next(one for one in workloads(manifests) if one.name == name)
        made[name] = Scaler(scaler, connection, ReplicaSet(workload, _none), Log(os.dup(1)))
    yield made
    for one in made.values():
        one.close()


def _none(name: str) -> Process:
    raise AssertionError(name)


@pytest.fixture(scope="module")
def database(server: EmbeddedPostgres, scalers: dict[str, Scaler]) -> Engine:
    assert scalers
    return engine(server.url("postgres", server.cluster.password, "lowtide"))


def fill(connection: Connection, table: str, pool: str, rows: int) -> None:
    """Insert rows of a pool with any valid value in every other required column."""
    columns = connection.execute(
        text(
            "SELECT column_name AS name, data_type AS type FROM information_schema.columns "
            "WHERE table_name = :table AND is_nullable = 'NO' AND column_default IS NULL "
            "AND is_identity = 'NO' AND is_generated = 'NEVER' AND column_name <> 'pool'"
        ),
        {"table": table},
    ).all()
    values = {
        "uuid": "gen_random_uuid()",
        "text": "'x'",
        "timestamp with time zone": "now()",
        "boolean": "false",
        "interval": "interval '1 minute'",
        "int4multirange": "int4multirange(int4range(n, n + 1))",
    }
    names = ", ".join(["pool", *(column.name for column in columns)])
    expressions = ", ".join([f"'{pool}'", *(values.get(column.type, "n") for column in columns)])
    connection.execute(text("SET session_replication_role = replica"))  # no foreign keys
    connection.execute(
        text(
            f"INSERT INTO {table} ({names}) "  # noqa: S608 - names from the catalogue
            f"SELECT {expressions} FROM generate_series(1, {rows}) n"
        )
    )


OF_BATCHES = """
INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint, completion_window,
  status, created_at, deadline)
SELECT batch_id, tenant_id, 'u', batch_id, 'k', '/v1/embeddings', '24h', 'in_progress', now(), now()
FROM queue
"""


def queue_up(connection: Connection, pool: str, rows: int) -> None:
    """Queue that many requests of a pool, each of a batch of its own, and nothing else."""
    connection.execute(text("TRUNCATE queued_runs, claimed_runs, batches CASCADE"))
    fill(connection, "queued_runs", pool, rows)
    connection.execute(text(OF_BATCHES))


@pytest.mark.parametrize(
    ("pool", "queued", "claimed", "value", "replicas"),
    [
        ("spot", 0, 0, 0, 0),
        ("spot", 1, 0, 1, 1),
        ("spot", 0, 1, 1, 1),
        ("spot", 5, 0, 5, 1),
        ("spot", 5, 1, 6, 2),
        ("spot", 15, 1, 16, 4),
        ("spot", 1000, 0, 20, 4),
        ("spot", 1000, 1000, 40, 4),
        ("dedicated", 10, 0, 10, 1),
        ("dedicated", 10, 1, 11, 2),
        ("dedicated", 1000, 0, 20, 2),
    ],
)
def test_scaler_query_counts_queued_and_claimed_requests_of_pool(
    scalers: dict[str, Scaler],
    database: Engine,
    pool: str,
    queued: int,
    claimed: int,
    value: int,
    replicas: int,
) -> None:
    other = {"spot": "dedicated", "dedicated": "spot"}[pool]
    with database.connect() as connection:
        queue_up(connection, pool, queued)
        fill(connection, "claimed_runs", pool, claimed)
    scaler = scalers[f"infer-{pool}"]
    assert scaler.read() == value
    assert scalers[f"infer-{other}"].read() == 0
    assert decide(scaler.policy, Memory(), scaler.read(), 0.0).replicas == replicas


MAX_REQUESTS = 200
DELETE_ONE = "DELETE FROM queued_runs WHERE ctid = (SELECT ctid FROM queued_runs LIMIT 1)"
ROWS_PER_REPLICA = {"spot": 5, "dedicated": 10}
BOUNDS = {
    "keda": {"spot": 4, "dedicated": 2},
    "knative/overlays/dev": {"spot": 4, "dedicated": 2},
    "knative/overlays/stage": {"spot": 10, "dedicated": 4},
    "knative/overlays/prod": {"spot": 50, "dedicated": 20},
}


@pytest.fixture(scope="module")
def replicas_by_policy(
    scalers: dict[str, Scaler], database: Engine
) -> dict[tuple[str, str], list[int]]:
    """The replicas of each ScaledObject for 0, 1, ... 200 queued requests of its pool."""
    policies = {
        (where, document["metadata"]["name"].removeprefix("infer-")): policy(
            msgspec.convert(document, ScaledObject)
        )
        for where in BOUNDS
        for document in rendered(where)
        if document["kind"] == "ScaledObject"
    }
    replicas: dict[tuple[str, str], list[int]] = {key: [] for key in policies}
    keda = scalers["infer-spot"]._engine  # with KEDA's role
    with database.connect() as connection, keda.connect() as autoscaler:
        for pool in ROWS_PER_REPLICA:
            queue_up(connection, pool, MAX_REQUESTS)
            for _ in range(MAX_REQUESTS + 1):
                for key, rules in policies.items():
                    if key[1] == pool:
                        value = float(autoscaler.scalar(text(rules.query)))
                        replicas[key].insert(0, decide(rules, Memory(), value, 0.0).replicas)
                connection.execute(text(DELETE_ONE))
    return replicas


@pytest.mark.parametrize(
    ("where", "pool"),
    [(where, pool) for where in BOUNDS for pool in ROWS_PER_REPLICA],
    ids=[f"{Path(where).name}-{pool}" for where in BOUNDS for pool in ROWS_PER_REPLICA],
)
def test_replicas_are_ceiling_of_requests_within_bounds(
    replicas_by_policy: dict[tuple[str, str], list[int]], where: str, pool: str
) -> None:
    each, bound = ROWS_PER_REPLICA[pool], BOUNDS[where][pool]
    expected = [min(-(-requests // each), bound) for requests in range(MAX_REQUESTS + 1)]
    assert replicas_by_policy[where, pool] == expected


def test_unreachable_database_gives_no_metric(manifests: Manifests) -> None:
    scaler = next(iter(manifests.all(ScaledObject)))
    workload = workloads(manifests)[0]
    made = Scaler(scaler, "postgresql://a:b@127.0.0.1:9/c", ReplicaSet(workload, _none), Log(1))
    assert made.read() is None
