"""The server against its own OpenAPI document, and documents against the tests they come from."""
