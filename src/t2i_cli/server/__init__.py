"""The HTTP server over any backend: one module for each dialect, and the page."""
