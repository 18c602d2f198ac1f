"""Vertex AI: credentials, and the life of an endpoint from its plan to its end."""
