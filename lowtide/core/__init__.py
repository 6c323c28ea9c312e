"""Ids, errors, pools and durations: what every slice speaks."""
