"""Tenants, API keys, limits, sign-in and the audit log."""
