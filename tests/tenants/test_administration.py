"""Administration: tenants with their usage, keys and the audit log, by filter and page."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.core.errors import Forbidden
from lowtide.core.ids import DEFAULT_TENANT, TenantId, new_id, now
from lowtide.core.pools import Pool
from lowtide.core.scopes import Role
from lowtide.database.connections import connect
from lowtide.local.files import SUPERUSER
from lowtide.tenants import audit, keys
from lowtide.tenants import store as tenants_store
from lowtide.tenants.audit import AuditEntry, AuditFilter, AuditLog
from lowtide.tenants.keys import KeyFilter, KeyMark, KeyState, KeyStore, KeyTerms
from lowtide.tenants.service import Administration, Tenancy, TenantChanges
from lowtide.tenants.sign_in import Principal
from lowtide.tenants.store import TenantStore, TenantUsageStore
from tests.conftest import PEPPER
from tests.loads import pages_read
from tests.plans import plan_nodes
from tests.worlds import World, done, emptied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

    from tests.conftest import Database

ADMIN = Principal("ops", Role.ADMIN)
VIEWER = Principal("viewer", Role.VIEWER)
OF_TENANT = Principal("default (api key 1a2b3c4d)", Role.ADMIN, DEFAULT_TENANT)


def _run(world: World, sql: str, **parameters: Any) -> None:
    with _superuser(world.database) as connection:
        connection.execute(text(sql), parameters)


@contextmanager
def _superuser(database: Database) -> Iterator[Connection]:
    """Open a connection that bypasses row-level security."""
    url = database.server.url(SUPERUSER, database.server.cluster.password, database.name)
    engine = connect(url, timeout=120)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection
    finally:
        engine.dispose()


@pytest.fixture
def operator(world: World) -> Engine:
    """Connections of the operator's role."""
    return world.database.engine("operator")


@pytest.fixture
def admin(operator: Engine) -> Administration:
    """The service over the real stores; keys are numbered: `lt_1`, `lt_2`."""
    store = TenantStore(operator, pepper=PEPPER)
    numbers = iter(range(1, 1000))

    def tenancy(actor: str) -> Tenancy:
        return Tenancy(
            store,
            defaults=store.tenants()[0].limits,
            actor=actor,
            new_id=new_id,
            new_key=lambda: f"lt_{next(numbers):040}",
            clock=now,
        )

    return Administration(
        store,
        TenantUsageStore(operator),
        KeyStore(operator),
        AuditLog(operator),
        "USD",
        tenancy,
    )


def test_tenant_usage_counts_batches_requests_and_cost(world: World, admin: Administration) -> None:
    acme = admin.acting(ADMIN).create("acme", TenantChanges(limits={"requests_per_minute": 60}))
    world.batch(5, tenant=acme.id)
    world.batch(4)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 9)
    acme_claims = [claim for claim in claims if world.row(claim.batch).tenant_id == acme.id]
    world.queue.settle(lease, [done(claim) for claim in acme_claims[:2]], [])
    world.run("UPDATE tallies SET replica_seconds = 3600 WHERE tenant_id = :id", id=acme.id)
    prices = "UPDATE batches SET spot_price = 7, currency = :currency WHERE tenant_id = :id"
    _run(world, prices, id=acme.id, currency=admin.currency)
    _run(world, "INSERT INTO request_rates VALUES (:id, 30, now() - interval '20 s')", id=acme.id)
    ended = world.batch(2, tenant=acme.id)
    old = world.batch(1, tenant=acme.id)
    _run(
        world,
        "UPDATE batches SET status = 'completed', drained_at = now(), "
        "completed_at = now() - (CASE WHEN id = :old THEN 25 ELSE 23 END) * interval '1 hour' "
        "WHERE id IN (:old, :new)",
        old=old,
        new=ended,
    )
    (usage, default), more = admin.tenants(ADMIN, "", after=None, limit=9)
    assert not more
    assert (usage.tenant, default.tenant.name) == (acme, "default")
    assert (usage.active_batches, usage.waiting_lines, usage.running_lines) == (1, 0, 3)
    assert (usage.batches, usage.lines) == (2, 2)
    assert (usage.input_tokens > 0, usage.output_tokens > 0) == (True, True)
    assert usage.requests == pytest.approx(10, abs=1)
    assert usage.cost == 7.0, "at the price stored with the batch"
    assert (
        default.running_lines,
        default.lines,
        default.requests,
    ) == (4, 0, None)


def test_tenants_are_searched_and_paged(admin: Administration) -> None:
    tenancy = admin.acting(ADMIN)
    for name in ("acme-1", "acme-2", "b", "lacme"):
        tenancy.create(name, TenantChanges())

    def names(text: str, after: str | None, limit: int = 9) -> tuple[list[str], bool]:
        tenants, more = admin.tenants(ADMIN, text, after=after, limit=limit)
        return [use.tenant.name for use in tenants], more

    assert names("acme", None, 2) == (["acme-1", "acme-2"], True)
    assert names("acme", "acme-2", 2) == (["lacme"], False)
    assert names("_", None) == ([], False)
    assert list(admin.names(ADMIN).values()) == ["acme-1", "acme-2", "b", "default", "lacme"]


def test_keys_are_filtered_and_paged(world: World, admin: Administration) -> None:
    tenancy = admin.acting(ADMIN)
    acme = tenancy.create("acme", TenantChanges())
    for name in ("laptop", "server", "old", "gone"):
        tenancy.create_key("acme", name)
    tenancy.create_key("acme", "soon", KeyTerms.parse(expires_in="30d"))
    tenancy.create_key("acme", "later", KeyTerms.parse(expires_in="31d"))
    tenancy.revoke_key("acme", "gone")
    tenancy.rotate_key("acme", "server", "1h")
    tenancy.rotate_key("acme", "old", "0")

    def names(**filters: Any) -> list[str]:
        page, _ = admin.keys(ADMIN, KeyFilter(**filters), after=None, limit=50)
        return [each.key.name for each in page]

    assert names(tenant=acme.id) == [
        "old",
        "server",
        "later",
        "soon",
        "gone",
        "old",
        "server",
        "laptop",
    ]
    assert names() == [*names(tenant=acme.id), "default"]
    assert names(state=KeyState.ACTIVE) == ["old", "server", "later", "laptop", "default"]
    assert names(state=KeyState.EXPIRING) == ["soon", "server"]
    for state in KeyState:
        page, _ = admin.keys(ADMIN, KeyFilter(state=state), after=None, limit=50)
        assert {each.state for each in page} == {state}
    assert names(state=KeyState.EXPIRED, tenant=acme.id) == ["old"]
    assert names(state=KeyState.REVOKED) == ["gone"]
    assert names(text="lap") == ["laptop"]
    assert names(text="lt_000000", tenant=TenantId(new_id())) == []
    assert len(names(text="lt_000000")) == 8
    first, more = admin.keys(ADMIN, KeyFilter(), after=None, limit=3)
    mark = KeyMark(first[-1].key.created_at, first[-1].key.id)
    rest, end = admin.keys(ADMIN, KeyFilter(), after=mark, limit=9)
    assert [each.key.name for each in (*first, *rest)] == names()
    assert (more, end, {each.tenant for each in rest}) == (True, False, {"acme", "default"})
    _run(world, "UPDATE api_keys SET created_at = '2026-01-01'")
    assert sorted(names()) == sorted([each.key.name for each in (*first, *rest)])


def test_audit_log_is_filtered_and_paged(world: World, admin: Administration) -> None:
    for actor in ("ana", "ben"):
        acting = admin.acting(Principal(actor, Role.ADMIN))
        acting.create(f"of-{actor}", TenantChanges())
        acting.create_key(f"of-{actor}", "laptop")
    _run(
        world,
        "INSERT INTO audit_log (tenant_id, actor, action, subject) "
        "VALUES (NULL, 'ana', 'pool.paused', 'spot')",
    )
    tenant = next(id_ for id_, name in admin.names(ADMIN).items() if name == "of-ben")

    def actions(limit: int = 9, after: int | None = None, **filters: Any) -> list[str]:
        entries, _ = admin.audit(ADMIN, AuditFilter(**filters), after=after, limit=limit)
        return [entry.action for entry in entries]

    assert actions() == [
        "pool.paused", "key.created", "tenant.created", "key.created", "tenant.created",
    ]  # fmt: skip
    assert actions(actor="ana") == ["pool.paused", "key.created", "tenant.created"]
    assert actions(actor="ana", action="key.created") == ["key.created"]
    assert actions(tenant=tenant) == ["key.created", "tenant.created"]
    assert actions(actor="an") == []
    (newest, second), more = admin.audit(ADMIN, AuditFilter(), after=None, limit=2)
    assert (newest.tenant, second.tenant, more) == (None, "of-ben", True)
    assert actions(after=second.id) == ["tenant.created", "key.created", "tenant.created"]
    assert admin.actions(ADMIN) == ["key.created", "pool.paused", "tenant.created"]


def test_audit_log_is_exported_oldest_first(
    world: World, admin: Administration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_EXPORT_PAGE", 2)
    # The last one has taken its id late in a transaction that began early.
    for age in (7200, 5400, 1800, 900, 300, 10, 180):
        _run(
            world,
            "INSERT INTO audit_log (actor, action, subject, at) "
            "VALUES ('ana', 'pool.paused', cast(cast(:age AS integer) AS text), "
            "now() - make_interval(secs => :age))",
            age=age,
        )

    def exported(since: datetime | None = None, after: int = 0) -> list[AuditEntry]:
        return list(admin.export_audit(ADMIN, since=since, after=after))

    entries = exported()
    assert [entry.subject for entry in entries] == ["7200", "5400", "1800", "900", "300"]
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    assert exported(since=hour_ago) == entries[2:]
    assert exported(after=entries[3].id) == entries[4:]
    assert exported(since=hour_ago, after=entries[0].id) == entries[2:]
    assert exported(after=entries[-1].id) == []
    _run(world, "UPDATE audit_log SET at = now() - interval '130 s' WHERE subject = '10'")
    assert [entry.subject for entry in exported(after=entries[-1].id)] == ["10", "180"]


@pytest.mark.parametrize(
    ("principal", "act"),
    [
        pytest.param(OF_TENANT, lambda admin: admin.names, id="names"),
        pytest.param(OF_TENANT, lambda admin: admin.actions, id="actions"),
        pytest.param(
            OF_TENANT,
            lambda admin: lambda principal: admin.tenants(principal, "", after=None, limit=1),
            id="tenants",
        ),
        pytest.param(
            OF_TENANT,
            lambda admin: lambda principal: admin.keys(principal, KeyFilter(), after=None, limit=1),
            id="keys",
        ),
        pytest.param(
            OF_TENANT,
            lambda admin: (
                lambda principal: admin.audit(principal, AuditFilter(), after=None, limit=1)
            ),
            id="audit",
        ),
        pytest.param(OF_TENANT, lambda admin: admin.acting, id="tenant operator acts"),
        pytest.param(VIEWER, lambda admin: admin.acting, id="viewer acts"),
        pytest.param(
            Principal("oncall", Role.OPERATOR),
            lambda admin: admin.acting,
            id="operator administers",
        ),
    ],
)
def test_unauthorized_principal_is_forbidden(
    admin: Administration,
    principal: Principal,
    act: Callable[[Administration], Callable[[Principal], object]],
) -> None:
    with pytest.raises(Forbidden):
        act(admin)(principal)


TENANTS = """
INSERT INTO tenants (id, name)
SELECT gen_random_uuid(), 'tenant-' || lpad(n::text, 5, '0') FROM generate_series(1, 1000) n
"""
BATCHES = """
INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint, completion_window,
  status, created_at, deadline, completed_at, total)
SELECT gen_random_uuid(), t.id, 'u', gen_random_uuid(), 'k', '/v1/embeddings', '24h',
  CASE WHEN n <= 2 THEN 'in_progress' ELSE 'completed' END, now(), now(),
  CASE WHEN n > 2 THEN now() - n * interval '3 hours' END, 100
FROM tenants t, generate_series(1, 20) n
"""
TALLIES = """
INSERT INTO tallies (batch_id, pool, lease_id, tenant_id, completed)
SELECT id, 'spot', gen_random_uuid(), tenant_id, 10 FROM batches, generate_series(1, 3)
"""
KEYS = """
INSERT INTO api_keys (hash, tenant_id, name, prefix, created_at, revoked_at)
SELECT decode(md5(t.name || n), 'hex'), t.id, 'key-' || n, 'lt_' || n,
  now() - n * interval '1 hour', CASE WHEN n > 5 THEN now() END
FROM tenants t, generate_series(1, 15) n
"""
AUDIT = """
INSERT INTO audit_log (tenant_id, actor, action, subject)
SELECT t.id, 'key of ' || t.name, CASE WHEN mod(n, 997) = 0 THEN 'key.created'
  WHEN mod(n, 2) = 0 THEN 'batches.create' ELSE 'files.create' END, 'subject ' || n
FROM tenants t, generate_series(1, 100) n
"""
FILLED = "tenants, batches, tallies, api_keys, audit_log"
_PAGE_OF_USE = {"text": None, "currency": "USD", "after": "tenant-00500", "limit": 51}
_ENTRIES = {"actor": None, "action": None, "tenant": None, "after": 50_000, "limit": 51}
_KEYS: dict[str, Any] = {
    "text": None, "after": "ffffffff-ffff-ffff-ffff-ffffffffffff", "created_at": "2100-01-01",
    "limit": 51,
}  # fmt: skip


@pytest.fixture(scope="module")
def filled(shared_database: Database) -> Engine:
    """1,000 tenants with 20,000 batches, 15,000 keys and 100,000 entries of the audit log."""
    with _superuser(emptied(shared_database)) as connection:
        for statement in (TENANTS, BATCHES, TALLIES, KEYS, AUDIT):
            connection.execute(text(statement))
        connection.execute(text(f"VACUUM ANALYZE {FILLED}"))
    return shared_database.engine("operator")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sql", "parameters", "indexes", "max_pages"),
    [
        pytest.param(
            tenants_store.PAGE,
            _PAGE_OF_USE,
            {"tenants_name_key", "batches_active_of_tenant", "batches_ended_of_tenant"},
            6000,
            id="tenants",
        ),
        pytest.param(keys.PAGES[None, False], _KEYS, {"api_keys_newest"}, 400, id="keys"),
        pytest.param(
            keys.PAGES[KeyState.ACTIVE, True],
            _KEYS | {"tenant": DEFAULT_TENANT},
            {"api_keys_of_tenant"},
            100,
            id="keys of a tenant",
        ),
        pytest.param(audit.PAGE, _ENTRIES, {"audit_log_pkey"}, 200, id="audit log"),
        pytest.param(
            audit.PAGE,
            _ENTRIES | {"actor": "key of tenant-00100"},
            {"audit_log_by_actor"},
            400,
            id="audit log of an actor",
        ),
        pytest.param(
            audit.PAGE,
            _ENTRIES | {"action": "key.created"},
            {"audit_log_by_action"},
            300,
            id="audit log of an action",
        ),
        pytest.param(
            audit.PAGE,
            _ENTRIES | {"tenant": DEFAULT_TENANT},
            {"audit_log_of_tenant"},
            400,
            id="audit log of a tenant",
        ),
        pytest.param(audit.ACTIONS, {}, {"audit_log_by_action"}, 50, id="actions"),
    ],
)
def test_page_is_read_by_index(
    filled: Engine, sql: str, parameters: dict[str, Any], indexes: set[str], max_pages: int
) -> None:
    nodes = plan_nodes(filled, sql, **parameters)
    assert indexes <= {node.get("Index Name") for node in nodes}
    seq_scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
    assert seq_scanned.isdisjoint(FILLED.split(", "))
    assert pages_read(filled, sql, **parameters) <= max_pages
