"""Imports that an image never needs are put off, and work as ever when they are asked for."""

import inspect
import json
import subprocess
import sys

from t2i_cli.models import libraries, library_source, repeated_scans

IMAGE = """
import importlib.metadata, json, sys, threading
scans, scan = [], importlib.metadata.packages_distributions
importlib.metadata.packages_distributions = lambda: scans.append(True) or scan()
from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest

backend = LocalBackend(LocalOptions(device="cpu"))
asked = GenerateRequest(prompt="a red star", model="postcard", steps=2, scheduler="euler")
request = resolve_request(asked, backend.describe(asked))
[outcome] = backend.run([request], lambda event: None, threading.Event())
found = {"image": list(outcome.image.size), "loaded": "torch._dynamo" in sys.modules}
found["sympy"] = "sympy" in sys.modules
found["scans"] = len(scans)
import torch, transformers.utils.import_utils as names
found["replaced"] = hasattr(names.fetch__all__, "__wrapped__")
found["names"] = names.create_import_structure_from_path.__wrapped__.cache_info().hits
found["same"] = sys.modules["transformers.models"]._class_to_module["CLIPTextModel"]
found["distributed"] = torch.distributed.is_available()
found["compiled"] = torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item()
print(json.dumps(found))
"""

ASKED = """
import json, sys
from t2i_cli.models.lazy_imports import defer_imports

with defer_imports():
    import torch
    from torch._dynamo import disable
    marked = disable(len) is len
    stand_in = sys.modules["torch._dynamo"]
    from torch._dynamo.utils import counters
    true = sys.modules["torch._dynamo"]
print(json.dumps({
    "marked": marked, "replaced": true is not stand_in,
    "whole": true.utils.counters is counters and callable(true.optimize),
    "kept": sys.modules["torch._dynamo"] is true,
}))
"""


SHAPES = """
import json, sys
from t2i_cli.models import libraries
from t2i_cli.models.lazy_imports import defer_imports

libraries.import_torch()
name = "torch.fx.experimental.symbolic_shapes"
cases = [
    ("expect_true", (True,)), ("guard_or_false", (False,)), ("guard_or_true", (False,)),
    ("guard_size_oblivious", (True,)), ("is_nested_int", (3,)), ("sym_eq", ((1, 2), (1, 2))),
    ("sym_eq", ((1, 2), (1, 3))), ("sym_eq", ((1,), (1, 3))),
]
with defer_imports():
    stub = sys.modules[name]
    held = stub.sym_eq
    plain = [getattr(stub, function)(*values) for function, values in cases]
    light = "sympy" not in sys.modules
    other = held([1, 2], [1, 2])
    replaced = sys.modules[name] is not stub and "sympy" in sys.modules
real = sys.modules[name]
print(json.dumps({
    "plain": plain == [getattr(real, function)(*values) for function, values in cases],
    "light": light, "other": other, "replaced": replaced, "kept": real is not stub,
}))
"""


def test_shapes_of_plain_numbers_need_no_sympy_and_others_get_the_true_module() -> None:
    expected = dict.fromkeys(("plain", "light", "other", "replaced", "kept"), True)
    assert _answers(SHAPES) == expected


ODD = ("", "import os\n", "__all__ = ['A', 'B']", "x = 1\n__all__ = ['A']\n__all__ = ['B']\n")


def scanned_files() -> list[str]:
    """Files that transformers scans for names: some of its own, and such as it has not."""
    package = library_source.package_folder("transformers")
    assert package is not None
    folders = (package / "models" / name for name in ("clip", "t5", "auto", "qwen2_vl", "siglip"))
    return [*ODD, *(file.read_text() for folder in folders for file in folder.glob("*.py"))]


def test_names_are_read_as_transformers_reads_them() -> None:
    libraries.import_diffusers()
    import transformers.utils.import_utils as scanner

    original = inspect.unwrap(scanner.fetch__all__)
    replaced = repeated_scans._from_last_line(original)
    files = scanned_files()
    found = [original(source) for source in files]
    assert [replaced(source) for source in files] == found
    assert sum(map(len, found)) > 30


def _answers(script: str) -> object:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_an_image_needs_no_compiler_and_the_compiler_works_after_it() -> None:
    assert _answers(IMAGE) == {
        "image": [128, 128],
        "loaded": False,
        "sympy": False,
        "scans": 1,
        "replaced": True,
        "names": 1,
        "same": "clip.modeling_clip",
        "distributed": True,
        "compiled": 2.0,
    }


def test_who_asks_for_more_than_a_mark_gets_the_true_module() -> None:
    assert _answers(ASKED) == dict.fromkeys(("marked", "replaced", "whole", "kept"), True)
