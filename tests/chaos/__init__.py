"""Seeded faults against a whole local stack, and the invariants that must hold under them.

`python -m tests.chaos --seed 1 --faults 1000`, or `make chaos SEED=1 FAULTS=1000`.
"""
