"""Object store adapters."""
