"""Keys move from one pepper to the next as they are used."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"

REHASH = """
-- The caller knows a key whose hash is `old`: only who has the key can know both.
CREATE FUNCTION rehash_key(old bytea, new bytea) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  UPDATE api_keys SET hash = new WHERE hash = old AND octet_length(new) = octet_length(old)
$$;
REVOKE ALL ON FUNCTION rehash_key(bytea, bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION rehash_key(bytea, bytea) TO lowtide_api;
"""


def upgrade() -> None:
    """Apply."""
    op.execute(REHASH)


def downgrade() -> None:
    """Migrations only go forward: restore a backup instead."""
    raise NotImplementedError
