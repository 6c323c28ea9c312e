"""The server against its OpenAPI document, and docs/compatibility.md against its tests."""
