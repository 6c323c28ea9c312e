"""What each database role may do, compared with the table in the repository."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tests.worlds import World

TABLE = Path(__file__).parents[2] / "docs/database-roles.md"
ROLES = ("lowtide_api", "lowtide_worker", "lowtide_operator", "lowtide_autoscaler")
HEAD = "| object | role | may |\n|---|---|---|\n"
# Rights of PUBLIC are those of every role.
TABLES = text("""
SELECT c.relname, r.rolname, a.privilege_type, NULL AS column
FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee
WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition
UNION ALL
SELECT c.relname, r.rolname, a.privilege_type, t.attname
FROM pg_attribute t JOIN pg_class c ON c.oid = t.attrelid
CROSS JOIN LATERAL aclexplode(t.attacl) a JOIN pg_roles r ON r.oid = a.grantee
WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition
""")
FUNCTIONS = text("""
SELECT p.proname, r.rolname, p.prosecdef
FROM pg_proc p CROSS JOIN LATERAL aclexplode(p.proacl) a JOIN pg_roles r ON r.oid = a.grantee
WHERE p.pronamespace = 'public'::regnamespace AND a.privilege_type = 'EXECUTE'
""")
PUBLIC_FUNCTIONS = text("""
SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef
  AND p.prorettype <> 'trigger'::regtype AND has_function_privilege('public', p.oid, 'EXECUTE')
""")


def granted(connection: Connection) -> list[str]:
    """Return the rows of the table: each object, each role, and what it may do."""
    rights: dict[tuple[str, str], dict[str, set[str]]] = {}
    for name, role, privilege, column in connection.execute(TABLES):
        if role in ROLES:
            columns = rights.setdefault((name, role), {}).setdefault(privilege, set())
            columns |= {column} if column else {""}
    rows = [
        f"| `{name}` | `{role}` | {', '.join(map(_privilege, sorted(by_kind.items())))} |"
        for (name, role), by_kind in rights.items()
    ]
    for name, role, is_definer in connection.execute(FUNCTIONS):
        if role in ROLES:
            note = ", as the owner" if is_definer else ""
            rows.append(f"| `{name}()` | `{role}` | EXECUTE{note} |")
    return sorted(set(rows))


def _privilege(entry: tuple[str, set[str]]) -> str:
    kind, columns = entry
    if "" in columns:
        return kind
    return f"{kind} of {', '.join(f'`{column}`' for column in sorted(columns))}"


def test_roles_may_do_what_the_table_says(world: World) -> None:
    with world.database.engine("owner").connect() as connection:
        rows = granted(connection)
    _, _, table = TABLE.read_text().partition(HEAD)
    listed = table.splitlines()
    assert sorted(set(rows) - set(listed)) == [], f"granted, but not in {TABLE.name}"
    assert sorted(set(listed) - set(rows)) == [], f"in {TABLE.name}, but not granted"
    assert listed == rows, "the rows are sorted"


def test_no_function_of_the_owner_is_for_everybody(world: World) -> None:
    with world.database.engine("owner").connect() as connection:
        assert connection.execute(PUBLIC_FUNCTIONS).scalars().all() == []


@pytest.mark.parametrize("role", ROLES)
def test_role_is_nobody_special(world: World, role: str) -> None:
    with world.database.engine("owner").connect() as connection:
        row = connection.execute(
            text("""
SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls,
  has_schema_privilege(rolname, 'public', 'CREATE') FROM pg_roles WHERE rolname = :role"""),
            {"role": role},
        ).one()
        owned = connection.execute(
            text("SELECT count(*) FROM pg_class WHERE relowner = :role ::regrole"), {"role": role}
        ).scalar_one()
    assert not any(row)
    assert owned == 0
