"""The queue: claims, settlement, leases, fairness."""
