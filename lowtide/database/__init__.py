"""Connections to PostgreSQL, the schema and its migrations."""
