"""OpenAI-compatible HTTP: application, bodies, errors, OpenAPI."""
