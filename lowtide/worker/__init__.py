"""The worker: pull loop, claims in flight, results."""
