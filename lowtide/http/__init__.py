"""HTTP in the shape of OpenAI: application, bodies, errors, OpenAPI."""
