"""Vertex AI: the life of an endpoint, and the credentials for it."""
