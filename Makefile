# What a developer runs; CI runs `make lint types` after the README's two commands.
# `make test` takes minutes, `make full` up to an hour and a half, `make mutants` as long:
# docs/testing.md.
PYTHON ?= .venv/bin/python

.PHONY: check test full fuzz mutants errors lint types docs bench gpu-bundle

check: lint types test

test:
	$(PYTHON) -m pytest

full:
	T2I_TEST_FRESH=1 $(PYTHON) -m pytest -m 'not gpu and not network' --hypothesis-profile=full \
		--durations=30
	# The classes that need torchvision, in an environment of their own: docs/testing.md.
	test ! -x .venv-families/bin/python || \
		.venv-families/bin/python -m pytest -m 'not gpu and not network' tests/test_family_promises.py

fuzz:
	T2I_FUZZ_INPUTS=100000 $(PYTHON) -m pytest tests/test_fuzz_readers.py --hypothesis-profile=full

mutants:
	rm -rf mutants
	$(PYTHON) -m mutmut run
	$(PYTHON) tests/mutants.py

errors:
	rm -f .coverage .coverage.*
	$(PYTHON) -m coverage run -m pytest
	$(PYTHON) -m coverage combine -q
	$(PYTHON) -m tests.unrun_errors .coverage

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(dir $(PYTHON))lint-imports
	$(PYTHON) docs/generate.py --check

types:
	$(PYTHON) -m mypy

docs:
	$(PYTHON) docs/generate.py

bench:
	$(PYTHON) benchmarks/help_time.py
	$(PYTHON) benchmarks/cold_start.py

gpu-bundle:
	$(PYTHON) -m benchmarks.gpu_wheels prove
	$(PYTHON) -m benchmarks.gpu_wheels collect gpu-bundle
