"""From a file to queued requests, and from results to a file."""
