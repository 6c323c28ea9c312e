"""Ids, errors, pools and durations, shared by every package."""
