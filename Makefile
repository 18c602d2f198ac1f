# What a developer runs; CI runs `make lint types` after the README's two commands.
PYTHON ?= .venv/bin/python

.PHONY: check test full lint types docs bench

check: lint types test

test:
	$(PYTHON) -m pytest

full:
	$(PYTHON) -m pytest -m "full and not gpu and not network"

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) docs/generate.py --check

types:
	$(PYTHON) -m mypy

docs:
	$(PYTHON) docs/generate.py

bench:
	$(PYTHON) benchmarks/help_time.py
	$(PYTHON) benchmarks/cold_start.py
