"""OpenAI-shaped HTTP over the services."""
