"""The HTTP server for any backend: one module for each API dialect, and a web page."""

from t2i_cli import library_environment

# prometheus_client and fastapi read variables when this package's modules import them.
library_environment.set_aside_invalid()
