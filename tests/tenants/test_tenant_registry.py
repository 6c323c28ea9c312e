"""Administration of tenants and keys, with its audit log."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.core.errors import Conflict, InvalidRequest, NotFound, Unauthenticated
from lowtide.core.ids import KeyId, new_id, now
from lowtide.core.scopes import EVERY_SCOPE, Scope
from lowtide.tenants.callers import Authenticator
from lowtide.tenants.keys import KeyState, KeyTerms, actor_of, new_key, prefix_of
from lowtide.tenants.model import TenantLimits
from lowtide.tenants.service import Tenancy, TenantChanges
from lowtide.tenants.store import TenantStore
from tests.conftest import PEPPER
from tests.worlds import World, together

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import TextClause

DEFAULTS = TenantLimits(requests_per_minute=600, active_batches=10)


@pytest.fixture
def tenancy(world: World) -> Tenancy:
    """The service, as the operator's role."""
    store = TenantStore(world.database.engine("operator"), pepper=PEPPER)
    return Tenancy(store, DEFAULTS, actor="me", new_id=new_id, new_key=new_key, clock=now)


def _audit(world: World) -> list[tuple[str, str, str]]:
    with world.database.engine("operator").begin() as connection:
        rows = connection.execute(text("SELECT actor, action, subject FROM audit_log ORDER BY id"))
        return [(row.actor, row.action, row.subject) for row in rows]


def _run(world: World, sql: str, **parameters: Any) -> None:
    with world.database.engine("operator").begin() as connection:
        connection.execute(text(sql), parameters)


def _caller(world: World, key: str) -> Any:
    return Authenticator(world.api, pepper=PEPPER, anonymous=None).caller(f"Bearer {key}")


def test_new_tenant_has_default_limits(world: World, tenancy: Tenancy) -> None:
    changes = TenantChanges(weight=3, limits={"active_batches": None, "running_lines": 5})
    created = tenancy.create("acme", changes)
    assert (created.weight, created.limits) == (
        3,
        TenantLimits(requests_per_minute=600, running_lines=5),
    )
    assert [tenant for tenant in tenancy.tenants() if tenant.name == "acme"] == [created]
    assert _audit(world) == [
        ("me", "tenant.created", "acme"),
        ("me", "tenant.changed", "weight: 1 -> 3"),
        ("me", "tenant.changed", "max_requests_per_minute: none -> 600"),
        ("me", "tenant.changed", "max_running_lines: none -> 5"),
    ]


def test_limits_change_individually(world: World, tenancy: Tenancy) -> None:
    tenancy.create("acme", TenantChanges())
    before = len(_audit(world))
    changed = tenancy.change("acme", TenantChanges(limits={"queued_lines": 100}))
    assert changed.limits == TenantLimits(600, 10, 100, None)
    assert (changed.name, changed.weight) == ("acme", 1)
    cleared = tenancy.change("acme", TenantChanges(limits={"requests_per_minute": None}))
    assert cleared.limits == TenantLimits(None, 10, 100, None)
    assert tenancy.change("acme", TenantChanges()) == cleared
    assert [subject for _, _, subject in _audit(world)[before:]] == [
        "max_queued_lines: none -> 100",
        "max_requests_per_minute: 600 -> none",
    ]


def test_retention_is_set_and_cleared(world: World, tenancy: Tenancy) -> None:
    tenancy.create("acme", TenantChanges(batch_retention=86_400))
    before = len(_audit(world))
    assert tenancy.change("acme", TenantChanges(weight=1)).batch_retention == 86_400
    assert tenancy.change("acme", TenantChanges(batch_retention=3600)).batch_retention == 3600
    assert tenancy.change("acme", TenantChanges(batch_retention=0)).batch_retention is None
    assert [subject for _, _, subject in _audit(world)[before:]] == [
        "batch_retention: 86400 -> 3600",
        "batch_retention: 3600 -> none",
    ]
    with pytest.raises(InvalidRequest, match="at least 1h"):
        tenancy.change("acme", TenantChanges(batch_retention=3599))


def test_concurrent_changes_do_not_overwrite_each_other(tenancy: Tenancy) -> None:
    tenancy.create("acme", TenantChanges())
    names = ("requests_per_minute", "active_batches", "queued_lines", "running_lines")
    together(*(partial(tenancy.change, "acme", TenantChanges(limits={name: 7})) for name in names))
    (acme,) = [tenant for tenant in tenancy.tenants() if tenant.name == "acme"]
    assert acme.limits == TenantLimits(7, 7, 7, 7)


def test_key_works_until_revoked(world: World, tenancy: Tenancy) -> None:
    acme = tenancy.create("acme", TenantChanges())
    key, other = tenancy.create_key("acme", "laptop"), tenancy.create_key("acme", "server")
    assert key.startswith("lt_")
    caller = _caller(world, key)
    assert (caller.tenant, caller.name) == (acme.id, "laptop")
    assert caller.allowance is not None
    tenancy.revoke_key("acme", "laptop")
    with pytest.raises(Unauthenticated):
        _caller(world, key)
    assert _caller(world, other).name == "server"
    assert [(listed.name, listed.revoked_at is None) for listed in tenancy.keys("acme")] == [
        ("laptop", False),
        ("server", True),
    ]
    assert tenancy.create_key("acme", "laptop") != key
    laptop, server, again = (actor_of(key.name, key.id) for key in tenancy.keys("acme"))
    assert caller.actor == laptop
    assert _audit(world)[-4:] == [
        ("me", "key.created", laptop),
        ("me", "key.created", server),
        ("me", "key.revoked", laptop),
        ("me", "key.created", again),
    ]


def test_rotated_key_works_until_overlap_ends(world: World, tenancy: Tenancy) -> None:
    tenancy.create("acme", TenantChanges())
    old = tenancy.create_key("acme", "laptop")
    rotation = tenancy.rotate_key("acme", "laptop", "2h")
    assert (_caller(world, old).name, _caller(world, rotation.key).name) == ("laptop", "laptop")
    first, second = tenancy.keys("acme")
    assert (first.expires_at, second.expires_at) == (rotation.old_until, None)
    assert (first.state(now()), second.state(now())) == (KeyState.EXPIRING, KeyState.ACTIVE)
    assert _caller(world, rotation.key).actor == actor_of("laptop", second.id)
    with pytest.raises(Conflict):
        tenancy.create_key("acme", "laptop")
    _run(world, "UPDATE api_keys SET expires_at = now() WHERE id = :id", id=first.id)
    with pytest.raises(Unauthenticated):
        _caller(world, old)
    assert [key.state(now()) for key in tenancy.keys("acme")] == [
        KeyState.EXPIRED,
        KeyState.ACTIVE,
    ]
    assert _audit(world)[-1][:2] == ("me", "key.rotated")


def test_key_has_its_scopes_and_its_end(world: World, tenancy: Tenancy) -> None:
    tenancy.create("acme", TenantChanges())
    terms = KeyTerms.parse(["batches:read", "files:write", "files:write"], "12h")
    key = tenancy.create_key("acme", "nightly", terms)
    caller = _caller(world, key)
    assert caller.scopes == {Scope.FILES_WRITE, Scope.BATCHES_READ}
    (record,) = tenancy.keys("acme")
    assert record.scopes == ("files:write", "batches:read")
    assert record.expires_at is not None
    assert record.expires_at - record.created_at == timedelta(hours=12)
    assert _audit(world)[-1] == (
        "me",
        "key.created",
        f"{actor_of('nightly', record.id)}: files:write, batches:read",
    )
    # A successor may do the same, without an end.
    successor = tenancy.rotate_key("acme", "nightly", "0").key
    assert _caller(world, successor).scopes == caller.scopes
    assert tenancy.keys("acme")[1].expires_at is None


@pytest.fixture
def callers(world: World) -> Callable[..., Authenticator]:
    """The authentication with a pepper, and with a previous one."""

    def make(pepper: str, previous: str = "") -> Authenticator:
        return Authenticator(world.api, pepper=pepper, previous_pepper=previous, anonymous=None)

    return make


def test_key_moves_to_the_new_pepper_when_it_is_used(
    world: World, tenancy: Tenancy, callers: Callable[..., Authenticator]
) -> None:
    tenancy.create("acme", TenantChanges())
    used, unused = tenancy.create_key("acme", "used"), tenancy.create_key("acme", "unused")
    for _ in range(2):
        assert callers("next", PEPPER).caller(f"Bearer {used}").name == "used"
    assert callers("next").caller(f"Bearer {used}").name == "used"
    with pytest.raises(Unauthenticated):
        callers("next").caller(f"Bearer {unused}")
    assert callers("next", PEPPER).caller(f"Bearer {unused}").name == "unused"
    with pytest.raises(Unauthenticated):
        callers("next", PEPPER).caller(f"Bearer {new_key()}")
    with pytest.raises(Unauthenticated):
        _caller(world, used)


def test_processes_of_both_steps_of_a_rotation_know_every_key(
    tenancy: Tenancy, callers: Callable[..., Authenticator]
) -> None:
    tenancy.create("acme", TenantChanges())
    key = tenancy.create_key("acme", "laptop")
    before, first, second = callers(PEPPER), callers(PEPPER, "next"), callers("next", PEPPER)
    for process in (before, first, before, first):
        assert process.caller(f"Bearer {key}").name == "laptop"
    for process in (second, first, first, second, first, second):
        assert process.caller(f"Bearer {key}").name == "laptop"
    assert callers("next").caller(f"Bearer {key}").name == "laptop"


def test_key_that_is_just_moved_is_found(
    tenancy: Tenancy, callers: Callable[..., Authenticator], monkeypatch: pytest.MonkeyPatch
) -> None:
    tenancy.create("acme", TenantChanges())
    key = tenancy.create_key("acme", "laptop")
    find = Authenticator._row
    names: list[str] = []

    def find_while_another_does(
        self: Authenticator, statement: TextClause, parameters: dict[str, object], *, counts: bool
    ) -> Any:
        row = find(self, statement, parameters, counts=counts)
        if not names:
            names.append("")
            names.append(callers("next", PEPPER).caller(f"Bearer {key}").name)
        return row

    monkeypatch.setattr(Authenticator, "_row", find_while_another_does)
    names.append(callers("next", PEPPER).caller(f"Bearer {key}").name)
    assert names == ["", "laptop", "laptop"]


def test_admin_includes_every_scope(world: World, tenancy: Tenancy) -> None:
    tenancy.create("acme", TenantChanges())
    key = tenancy.create_key("acme", "boss", KeyTerms.parse(["admin"]))
    assert _caller(world, key).scopes == EVERY_SCOPE


@pytest.mark.parametrize(
    ("scopes", "expires_in", "message"),
    [
        (["files:read", "files:delete"], None, "Unknown scope 'files:delete': use files:read,"),
        (["Files:Read"], None, "Unknown scope"),
        ([""], None, "Unknown scope ''"),
        ([], "0d", "Invalid expiry '0d'"),
        ([], "soon", "Invalid expiry 'soon'"),
        ([], "3651d", "at most 3650d"),
        ([], "", "Invalid expiry ''"),
    ],
)
def test_bad_terms_are_refused(scopes: list[str], expires_in: str | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        KeyTerms.parse(scopes, expires_in)


def test_repeated_rotation_does_not_extend_older_keys(tenancy: Tenancy) -> None:
    tenancy.create("acme", TenantChanges())
    tenancy.create_key("acme", "laptop")
    tenancy.rotate_key("acme", "laptop", "1h")
    tenancy.rotate_key("acme", "laptop", "9h")
    first, second, third = tenancy.keys("acme")
    assert first.expires_at is not None
    assert second.expires_at is not None
    assert second.expires_at - first.expires_at > timedelta(hours=7)
    assert third.expires_at is None
    tenancy.rotate_key("acme", "laptop", "0")
    states = [key.state(now()) for key in tenancy.keys("acme")]
    assert states == [KeyState.EXPIRED] * 3 + [KeyState.ACTIVE]


def test_one_of_several_keys_of_a_name_is_revoked(world: World, tenancy: Tenancy) -> None:
    tenancy.create("acme", TenantChanges())
    old = tenancy.create_key("acme", "laptop")
    rotation = tenancy.rotate_key("acme", "laptop", "1h")
    tenancy.revoke_key("acme", "laptop", tenancy.keys("acme")[0].id)
    with pytest.raises(Unauthenticated):
        _caller(world, old)
    assert _caller(world, rotation.key).name == "laptop"
    tenancy.rotate_key("acme", "laptop", "1h")
    tenancy.revoke_key("acme", "laptop")
    assert {key.state(now()) for key in tenancy.keys("acme")} == {KeyState.REVOKED}


def test_last_use_of_key_is_recorded_once_a_minute(world: World, tenancy: Tenancy) -> None:
    tenancy.create("acme", TenantChanges())
    key = tenancy.create_key("acme", "laptop")
    assert tenancy.keys("acme")[0].last_used_at is None
    together(*[partial(_caller, world, key)] * 4)
    used = tenancy.keys("acme")[0].last_used_at
    assert used is not None
    _caller(world, key)
    assert tenancy.keys("acme")[0].last_used_at == used
    _run(world, "UPDATE api_keys SET last_used_at = now() - interval '61 s'")
    _caller(world, key)
    again = tenancy.keys("acme")[0].last_used_at
    assert again is not None
    assert again >= used


def test_key_is_listed_with_its_prefix(tenancy: Tenancy) -> None:
    tenancy.create("acme", TenantChanges())
    key = tenancy.create_key("acme", "laptop")
    assert tenancy.keys("acme")[0].prefix == key[:9]
    assert prefix_of("lt_short") is None


def test_in_use_excludes_revoked_keys(world: World, tenancy: Tenancy) -> None:
    acme = tenancy.create("acme", TenantChanges())
    authenticator = Authenticator(world.api, pepper=PEPPER, anonymous=None)
    for name in ("active", "rotated", "revoked"):
        tenancy.create_key("acme", name)
    tenancy.rotate_key("acme", "rotated", "1h")
    tenancy.revoke_key("acme", "revoked")
    keys = tenancy.keys("acme")
    in_use = authenticator.in_use([key.id for key in keys])
    assert {key.name for key in keys if key.id in in_use} == {"active", "rotated"}
    assert len(in_use) == 3
    assert authenticator.in_use([KeyId(acme.id)]) == set()


def test_conflicting_change_is_refused(tenancy: Tenancy) -> None:
    original = tenancy.create("acme", TenantChanges())
    tenancy.change("acme", TenantChanges(weight=2), original)
    with pytest.raises(Conflict, match="acme was changed in the meantime: weight: 1 → 2"):
        tenancy.change("acme", TenantChanges(weight=3), original)
    assert tenancy.tenants()[0].weight == 2


def test_key_is_not_stored_in_plain_text(world: World, tenancy: Tenancy) -> None:
    tenancy.create("acme", TenantChanges())
    key = tenancy.create_key("acme", "laptop")
    assert key not in str(world.contents())


@pytest.mark.parametrize(
    ("call", "error"),
    [
        pytest.param(
            lambda tenancy: tenancy.create("default", TenantChanges()),
            Conflict,
            id="tenant name taken",
        ),
        pytest.param(
            lambda tenancy: tenancy.create("No Name", TenantChanges()),
            InvalidRequest,
            id="invalid tenant name",
        ),
        pytest.param(
            lambda tenancy: tenancy.create("x", TenantChanges(weight=0)),
            InvalidRequest,
            id="zero weight",
        ),
        pytest.param(
            lambda tenancy: tenancy.change("default", TenantChanges(limits={"running_lines": 0})),
            InvalidRequest,
            id="zero limit",
        ),
        pytest.param(
            lambda tenancy: tenancy.change("nobody", TenantChanges()), NotFound, id="unknown tenant"
        ),
        pytest.param(lambda tenancy: tenancy.keys("nobody"), NotFound, id="keys of unknown tenant"),
        pytest.param(
            lambda tenancy: tenancy.create_key("nobody", "k"), NotFound, id="key of unknown tenant"
        ),
        pytest.param(
            lambda tenancy: tenancy.create_key("default", "a key"),
            InvalidRequest,
            id="invalid key name",
        ),
        pytest.param(
            lambda tenancy: tenancy.create_key("default", "default"), Conflict, id="key name taken"
        ),
        pytest.param(
            lambda tenancy: tenancy.revoke_key("default", "nothing"), NotFound, id="unknown key"
        ),
        pytest.param(
            lambda tenancy: tenancy.rotate_key("default", "nothing", "0"),
            NotFound,
            id="rotate unknown key",
        ),
        pytest.param(
            lambda tenancy: tenancy.rotate_key("default", "default", "31d"),
            InvalidRequest,
            id="overlap too long",
        ),
        pytest.param(
            lambda tenancy: tenancy.change("default", TenantChanges(weight=2**31)),
            InvalidRequest,
            id="weight beyond integer range",
        ),
    ],
)
def test_refused_call_changes_nothing(
    world: World,
    tenancy: Tenancy,
    call: Callable[[Tenancy], object],
    error: type[Exception],
) -> None:
    before = world.contents()
    with pytest.raises(error):
        call(tenancy)
    assert world.contents() == before


def test_concurrent_keys_cannot_share_a_name(tenancy: Tenancy) -> None:
    tenancy.create("acme", TenantChanges())

    def create() -> bool:
        try:
            tenancy.create_key("acme", "laptop")
        except Conflict:
            return False
        return True

    assert sorted(together(*[create] * 4)) == [False, False, False, True]
