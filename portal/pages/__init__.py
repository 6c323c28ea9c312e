"""The pages, one module each, with components of their own."""
