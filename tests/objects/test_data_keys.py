"""Data keys: wrapped by a master key, kept for a minute, and gone when their row is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from lowtide.core.errors import Conflict, Unavailable
from lowtide.core.ids import DEFAULT_TENANT, new_id
from lowtide.database.connections import acting_for, begin
from lowtide.objects.data_keys import DataKeys, MasterKeys, add_key, destroy_keys
from lowtide.objects.names import DataKeyId, KeyDestroyed

if TYPE_CHECKING:
    from lowtide.objects.data_keys import WrappedKey
    from tests.worlds import World

OLD, NEW = b"o" * 32, b"n" * 32


def made(world: World, keys: DataKeys) -> WrappedKey:
    """Record a new data key of the default tenant."""
    key = keys.make(DEFAULT_TENANT, new_id())
    with acting_for(world.api, DEFAULT_TENANT) as connection:
        add_key(connection, key)
    return key


def test_a_key_is_the_same_in_every_process_with_the_master_key(world: World) -> None:
    first = DataKeys(world.api, MasterKeys(OLD))
    key = made(world, first)
    assert len(first.get(key.id)) == 32
    assert DataKeys(world.worker, MasterKeys(OLD)).get(key.id) == first.get(key.id)
    assert first.get(made(world, first).id) != first.get(key.id)


def test_the_row_does_not_contain_the_key(world: World) -> None:
    keys = DataKeys(world.api, MasterKeys(OLD))
    key = made(world, keys)
    assert keys.get(key.id) not in key.wrapped
    with pytest.raises(Unavailable, match="LOWTIDE_MASTER_KEY"):
        DataKeys(world.api, MasterKeys(NEW)).get(key.id)
    with pytest.raises(Unavailable, match="LOWTIDE_MASTER_KEY"):
        DataKeys(world.api, MasterKeys(None)).get(key.id)


def test_a_row_under_another_id_is_refused(world: World) -> None:
    keys = DataKeys(world.api, MasterKeys(OLD))
    key, other = made(world, keys), new_id()
    with acting_for(world.api, DEFAULT_TENANT) as connection:
        connection.execute(
            text("INSERT INTO data_keys (id, tenant_id, wrapped) VALUES (:id, :tenant, :wrapped)"),
            {"id": other, "tenant": DEFAULT_TENANT, "wrapped": key.wrapped},
        )
    with pytest.raises(Unavailable):
        keys.get(DataKeyId(DEFAULT_TENANT, other))


def test_a_destroyed_key_works_for_a_minute_at_most(world: World) -> None:
    now = 0.0
    keys = DataKeys(world.api, MasterKeys(OLD), timer=lambda: now)
    key = made(world, keys)
    with begin(world.worker) as connection:
        destroy_keys(connection, [key.id.owner])
        destroy_keys(connection, [key.id.owner])
    now = 59.0
    assert keys.get(key.id)
    now = 60.0
    with pytest.raises(KeyDestroyed):
        keys.get(key.id)


def test_few_keys_stay_in_memory(world: World) -> None:
    now = 0.0
    keys = DataKeys(world.api, MasterKeys(OLD), timer=lambda: now)
    for _ in range(1100):
        keys.make(DEFAULT_TENANT, new_id())
    assert len(keys._cache) == 1024
    now = 61.0
    keys.make(DEFAULT_TENANT, new_id())
    assert len(keys._cache) == 1


def test_a_tenant_has_its_own_keys_only(world: World) -> None:
    keys = DataKeys(world.api, MasterKeys(OLD))
    key, other = made(world, keys), world.tenant("other")
    fresh = DataKeys(world.api, MasterKeys(OLD))
    with pytest.raises(KeyDestroyed):
        fresh.get(DataKeyId(other, key.id.owner))
    with acting_for(world.api, other) as connection:
        destroy_keys(connection, [key.id.owner])
    assert fresh.get(key.id) == keys.get(key.id)


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("worker", "UPDATE data_keys SET wrapped = 'x'"),
        ("worker", "UPDATE data_keys SET tenant_id = :id"),
        ("api", "UPDATE data_keys SET file_id = :id"),
        ("api", "UPDATE data_keys SET wrapped = 'x'"),
        ("operator", "UPDATE data_keys SET tenant_id = :id"),
        ("autoscaler", "SELECT :id, wrapped FROM data_keys"),
    ],
    ids=lambda value: value.split(" = ")[0].replace("UPDATE data_keys SET ", ""),
)
def test_roles_have_no_further_rights(world: World, role: str, statement: str) -> None:
    with (
        pytest.raises(DBAPIError, match="permission denied"),
        world.database.engine(role).begin() as connection,
    ):
        connection.execute(text(statement), {"id": new_id()} if ":id" in statement else {})


def test_rotation_of_the_master_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowtide.objects.data_keys._PAGE_ROWS", 2)
    before = DataKeys(world.api, MasterKeys(OLD))
    keys = [made(world, before) for _ in range(5)]
    both = DataKeys(world.api, MasterKeys(NEW, OLD))
    keys.append(made(world, both))
    assert both.get(keys[0].id) == before.get(keys[0].id)
    operator = world.database.engine("operator")
    assert DataKeys(operator, MasterKeys(NEW, OLD)).rewrap() == 5
    assert DataKeys(operator, MasterKeys(NEW, OLD)).rewrap() == 0
    after = DataKeys(world.api, MasterKeys(NEW))
    assert [after.get(key.id) for key in keys] == [both.get(key.id) for key in keys]
    with pytest.raises(Unavailable):
        DataKeys(world.api, MasterKeys(OLD)).get(keys[0].id)


def test_without_a_current_master_key_no_key_is_made(world: World) -> None:
    for masters in (MasterKeys(None), MasterKeys(None, OLD)):
        with pytest.raises(Conflict, match="LOWTIDE_MASTER_KEY is not set"):
            DataKeys(world.api, masters).make(DEFAULT_TENANT, new_id())
    key = made(world, DataKeys(world.api, MasterKeys(OLD)))
    assert DataKeys(world.api, MasterKeys(None, OLD)).get(key.id)
