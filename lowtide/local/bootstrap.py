"""Database setup of a local stack, from an empty cluster to the current schema; idempotent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.local.database import engine
from lowtide.local.files import LOGIN_ROLES, OWNER, SUPERUSER

if TYPE_CHECKING:
    from lowtide.local.database import Cluster
    from lowtide.local.files import Secrets


DATABASE = "lowtide"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Database URLs per role; `by_role` covers the login roles."""

    migration: str
    by_role: dict[str, str]


def addresses(cluster: Cluster, port: int, secrets: Secrets) -> Addresses:
    """Return the URLs of the database served on `port`."""

    def url(role: str) -> str:
        return cluster.url(port, role, secrets.passwords[role], DATABASE)

    return Addresses(migration=url(OWNER), by_role={role: url(role) for role in LOGIN_ROLES})


def bootstrap(cluster: Cluster, port: int, secrets: Secrets) -> None:
    """Create the owner and the database, migrate, and ensure the default tenant and its key."""
    from lowtide.database.migrate import migrate
    from lowtide.tenants.store import ensure_default_tenant

    ensure_database(
        cluster.url(port, SUPERUSER, secrets.passwords[SUPERUSER], "postgres"),
        secrets.passwords[OWNER],
    )
    url = addresses(cluster, port, secrets).migration
    migrate(url, {role: secrets.passwords[role] for role in LOGIN_ROLES})
    ensure_default_tenant(url, secrets.api_key_pepper, secrets.api_key)


def ensure_database(superuser_url: str, owner_password: str) -> None:
    """Create the owner, which may create roles, and the database it owns."""
    with engine(superuser_url).connect() as connection:
        roles = connection.scalars(text("SELECT rolname FROM pg_roles"))
        verb = "ALTER" if OWNER in set(roles) else "CREATE"
        # Utility statements take no parameters, so the server's format() quotes the values.
        statement = connection.scalar(
            text("SELECT format(:template, cast(:owner AS text), cast(:password AS text))"),
            {
                "template": f"{verb} ROLE %I LOGIN CREATEROLE PASSWORD %L",
                "owner": OWNER,
                "password": owner_password,
            },
        )
        connection.exec_driver_sql(str(statement).replace("%", "%%"))
        databases = connection.scalars(text("SELECT datname FROM pg_database"))
        if DATABASE not in set(databases):
            connection.execute(text(f"CREATE DATABASE {DATABASE} OWNER {OWNER}"))
