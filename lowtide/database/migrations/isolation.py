"""Row-level security of tables that belong to tenants."""

from __future__ import annotations


def isolated(table: str, column: str = "tenant_id") -> str:
    """Return statements that show `lowtide_api` only the rows of the tenant it acts for."""
    return f"""
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON {table} TO lowtide_api
  USING ({column} = nullif(current_setting('lowtide.tenant', true), '')::uuid);
CREATE POLICY every_tenant ON {table}
  TO lowtide_worker, lowtide_operator, lowtide_autoscaler USING (true);
"""
