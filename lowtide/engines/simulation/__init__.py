"""Answers and faults of the simulated engine."""
