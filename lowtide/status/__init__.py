"""The state of the installation: history, health and alerts."""
