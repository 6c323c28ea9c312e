"""The end of data: partitions, and how long batches keep what is in them."""
