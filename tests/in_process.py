"""Runs `t2i` in this process: for many short commands, of which one as a process says enough."""

import io
import os
import subprocess
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from t2i_cli.cli import main


def run_in_process(*args: str | Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run one command line with `env` as the whole environment, and without a terminal."""
    out, err = io.StringIO(), io.StringIO()
    arguments = [*map(str, args)]
    with (
        mock.patch.dict(os.environ, env, clear=True),
        mock.patch("sys.stdin", io.StringIO()),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        code = main._run(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
