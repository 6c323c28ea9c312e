"""Fleets: sets of models, each served by workers on one kind of hardware."""
