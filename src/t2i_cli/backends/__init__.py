"""The backends: this machine (local), any images API server (http), Vertex AI (vertex)."""
