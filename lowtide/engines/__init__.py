"""Engines: the protocol, its implementations, and fault attribution."""
