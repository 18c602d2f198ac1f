"""Imports that an image never needs are put off, and work as ever when they are asked for."""

import json
import subprocess
import sys

IMAGE = """
import json, sys, threading
from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest

backend = LocalBackend(LocalOptions(device="cpu"))
asked = GenerateRequest(prompt="a red star", model="postcard", steps=2, scheduler="euler")
request = resolve_request(asked, backend.describe(asked))
[outcome] = backend.run([request], lambda event: None, threading.Event())
found = {"image": list(outcome.image.size), "loaded": "torch._dynamo" in sys.modules}
import torch
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


def _answers(script: str) -> object:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_an_image_needs_no_compiler_and_the_compiler_works_after_it() -> None:
    expected = {"image": [128, 128], "loaded": False, "distributed": True, "compiled": 2.0}
    assert _answers(IMAGE) == expected


def test_who_asks_for_more_than_a_mark_gets_the_true_module() -> None:
    assert _answers(ASKED) == dict.fromkeys(("marked", "replaced", "whole", "kept"), True)
