"""Batches: records, states, admission, forecasts, lists and details."""
