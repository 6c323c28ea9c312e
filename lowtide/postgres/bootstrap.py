"""What a fresh installation needs before its first request."""

from __future__ import annotations

from sqlalchemy import text

from lowtide.auth.keys import hash_key, prefix_of
from lowtide.domain.ids import DEFAULT_TENANT
from lowtide.postgres.connections import connect


def ensure_default_tenant(url: str, pepper: str, api_key: str) -> None:
    """Create the tenant `default` with this API key, unless both exist. `url` is the owner's."""
    engine = connect(url, pool_size=1)
    try:
        with engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO tenants (id, name) VALUES (:id, 'default') ON CONFLICT DO NOTHING"
                ),
                {"id": DEFAULT_TENANT},
            )
            connection.execute(
                text(
                    "INSERT INTO api_keys (hash, tenant_id, name, prefix) "
                    "VALUES (:hash, :tenant, 'default', :prefix) ON CONFLICT DO NOTHING"
                ),
                {
                    "hash": hash_key(api_key, pepper),
                    "tenant": DEFAULT_TENANT,
                    "prefix": prefix_of(api_key),
                },
            )
    finally:
        engine.dispose()
