"""Measurements of t2i against other tools; each script runs every side in the same run."""
