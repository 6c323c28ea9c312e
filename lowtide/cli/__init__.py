"""The `lowtide` command."""
