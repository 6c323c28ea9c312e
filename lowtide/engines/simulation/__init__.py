"""Answers of the simulated engine, one module an endpoint or a part of an answer."""
