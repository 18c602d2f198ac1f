"""t2i: text to images from the terminal, on this machine, on Vertex AI, or on any images server."""

__version__ = "0.1.0"
