"""The pages, one module each with what only it needs."""
