"""PostgreSQL adapters: store, queue and outbox."""
