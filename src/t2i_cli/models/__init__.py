"""Model catalogue, diffusers folders, schedulers, and the resolution of models and requests."""
