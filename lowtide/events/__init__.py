"""CloudEvents: types, outbox, publisher, inbox."""
