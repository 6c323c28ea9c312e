"""CloudEvents adapters."""
