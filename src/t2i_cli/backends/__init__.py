"""Where images are made: this machine (local), any images server (http), Vertex AI (vertex)."""
