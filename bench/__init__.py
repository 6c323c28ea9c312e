"""Benchmarks: each prints its references in the same run. Run them as modules: `make bench-…`."""
