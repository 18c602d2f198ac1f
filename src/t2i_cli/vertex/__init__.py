"""Vertex AI: credentials, and the life of an endpoint from its plan to its end."""

DEFAULT_TTL = "4h"
"""How long a deployment may live where nothing else is said."""
