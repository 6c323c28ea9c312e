"""The state of the installation: history, health, alerts."""
