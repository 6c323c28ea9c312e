"""Running the failed requests of a batch again."""
