"""Runs `python -m t2i_cli` as `t2i`."""

from t2i_cli.cli.main import main

main()
