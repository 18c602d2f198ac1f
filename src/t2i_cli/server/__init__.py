"""The HTTP server for any backend: one module for each API dialect, and a web page."""
