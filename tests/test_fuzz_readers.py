"""Whatever stands in a file or an answer of others, only a T2IError leaves its reader.

Each example of Hypothesis tries INPUTS_AN_EXAMPLE inputs, so that its own work does not count.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from t2i_cli import known_secrets
from t2i_cli.errors import AccessError, InternalError, T2IError
from tests.fuzz_readers import READERS

INPUTS_VARIABLE = "T2I_FUZZ_INPUTS"
"""How many inputs each reader gets; `make fuzz` sets 100,000."""
INPUTS_AN_EXAMPLE = 20
INPUTS = int(os.environ.get(INPUTS_VARIABLE, "2000"))


MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made there


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a disk takes milliseconds for each file."""
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", READERS)
def test_only_our_errors_leave_a_reader(name: str, scratch: Path) -> None:
    reader = READERS[name]
    tried = 0

    @settings(
        max_examples=max(1, INPUTS // INPUTS_AN_EXAMPLE),
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
        database=None,
    )
    @given(seed=st.integers(0, 2**64 - 1))
    def fuzz(seed: int) -> None:
        nonlocal tried
        for number in range(INPUTS_AN_EXAMPLE):
            data = reader.mutate(Random(f"{seed} {number}"), reader.valid)  # noqa: S311 - no secret
            tried += 1
            try:
                # Each input may hold another secret, and each set of them is compiled.
                with patch.object(known_secrets, "_registered", {}):
                    reader.read(data, scratch)
            except T2IError as error:
                assert error.message and not isinstance(error, InternalError)
            except reader.raises:
                pass
            except Exception as error:  # noqa: BLE001 - told with the input
                raise AssertionError(f"{type(error).__name__} for {data[:2000]!r}") from error

    fuzz()
    assert tried >= INPUTS


@pytest.mark.parametrize("name", READERS)
def test_a_sound_input_is_read(name: str, scratch: Path) -> None:
    """A reader that refuses everything would not be tried at all."""
    reader = READERS[name]
    if name == "Google: error":
        with pytest.raises(AccessError, match="no"):
            reader.read(reader.valid[0], scratch)
        return
    whole = b"\n".join([*reader.valid, b""]) if reader.mutate.__name__ == "mutate_lines" else None
    header = reader.mutate.__name__ == "mutate_header"
    for data in [whole] if whole else reader.valid:
        if header:
            data = len(data).to_bytes(8, "little") + data + bytes(24)
        reader.read(data, scratch)
