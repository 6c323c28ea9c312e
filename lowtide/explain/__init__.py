"""The explanation of a batch: what it waits for or what limited it, and when it ends."""
