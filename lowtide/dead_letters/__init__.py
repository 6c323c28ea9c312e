"""Dead letters: search, requeue, discard."""
