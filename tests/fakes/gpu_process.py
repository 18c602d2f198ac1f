"""`t2i` on the fake GPU, with what torch and diffusers are told to do written down.

`python -m tests.fakes.gpu_process FILE generate …` appends a line to FILE for each time that the
device's cache is emptied (`empty_cache`) and that attention is computed (the processor's class).
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from t2i_cli.cli.main import main as run_t2i
from t2i_cli.models.libraries import LibraryObject
from tests.fakes import gpu


def main() -> None:
    """Run `t2i` with the arguments after the file's."""
    import torch
    from diffusers.models import attention_processor

    log = Path(sys.argv.pop(1))

    def watched(owner: object, name: str, word: str) -> None:
        original: Callable[..., LibraryObject] = getattr(owner, name)

        def method(*args: LibraryObject, **kwargs: LibraryObject) -> LibraryObject:
            with log.open("a") as file:
                file.write(f"{word}\n")
            return original(*args, **kwargs)

        setattr(owner, name, method)

    gpu.install(pytest.MonkeyPatch(), free=8 * 2**30)
    watched(torch.xpu, "empty_cache", "empty_cache")
    for cls in (attention_processor.AttnProcessor2_0, attention_processor.SlicedAttnProcessor):
        watched(cls, "__call__", cls.__name__)
    run_t2i()


if __name__ == "__main__":
    main()
