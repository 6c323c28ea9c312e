"""One module a use case, over the ports."""
