"""Search: batches, files and requests by id, custom_id, user or metadata."""
