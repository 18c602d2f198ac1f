"""Output files: their names, their metadata, and writing them."""
