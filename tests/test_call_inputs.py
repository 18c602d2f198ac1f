"""Which input a call needs, by its source: code of the shapes that pipelines have."""

import ast
import textwrap
from inspect import Parameter

import pytest

from t2i_cli.models import call_inputs
from t2i_cli.models.class_facts import PipelineFacts


def needed(*methods: str) -> str | None:
    """What a class of these methods needs, of `image` and `mask`, which are None by default."""
    found = {}
    for text in methods:
        node = ast.parse(textwrap.dedent(text)).body[0]
        assert isinstance(node, ast.FunctionDef)
        found[node.name] = node
    kind = Parameter.POSITIONAL_OR_KEYWORD
    call = {name: Parameter(name, kind, default=None) for name in ("prompt", "image", "mask")}
    return call_inputs.needed_input(
        PipelineFacts(
            name="Own",
            module="own",
            call=call,
            init={},
            optional_components=frozenset(),
            method=found.get,
        )
    )


def call(body: str) -> str:
    """A call of that body."""
    return "def __call__(self, prompt, image=None, mask=None):\n" + textwrap.indent(
        textwrap.dedent(body), "    "
    )


@pytest.mark.parametrize(
    ("body", "input_"),
    [
        ("size = image.size", "image"),
        ("first = image[0]", "image"),
        ("for each in image: pass", "image"),
        ("found = [each for each in mask]", "mask"),
        ("count = len(image)", "image"),
        ("given = self.image_processor.preprocess(image)", "image"),
        ("given = self.image_processor.preprocess(image=image)", "image"),
        ("if image is None:\n    raise ValueError", "image"),
        ("if not isinstance(image, list):\n    raise ValueError", "image"),
        ("assert image is not None", "image"),
        ("if self.odd:\n    image.size\nelse:\n    image[0]", "image"),
        ("used = image\nused.size", "image"),
        ("size = image.size if self.odd else image[0]", "image"),
        # Not needed: guarded, or needed on one way only.
        ("if image is not None:\n    image.size", None),
        ("size = image.size if image is not None else None", None),
        ("if image:\n    image.size", None),
        ("if image is not None and image.size:\n    raise ValueError", None),
        ("if self.odd and image.size:\n    raise ValueError", None),
        ("if image is None:\n    return 1\nimage.size", None),
        ("if self.odd:\n    image.size", None),
        ("if prompt is None:\n    raise ValueError", None),
        ("if image is None:\n    image = self.make()\nimage.size", None),
        ("for each in self.steps:\n    image.size", None),
        ("try:\n    image.size\nexcept AttributeError:\n    pass", None),
        ("latents = self.vae.encode(prompt)", None),
    ],
)
def test_what_a_call_needs(body: str, input_: str | None) -> None:
    assert needed(call(body)) == input_


def test_the_call_is_followed_into_the_methods_of_its_class() -> None:
    check = """
        def check_inputs(self, prompt, picture, strict=True):
            if picture is None:
                raise ValueError
    """
    assert needed(call("self.check_inputs(prompt, image)"), check) == "image"
    assert needed(call("self.check_inputs(prompt, picture=image)"), check) == "image"
    assert needed(call("self.check_inputs(prompt, prompt)"), check) is None
    made = "def made(self, image):\n    return image"
    assert needed(call("found = self.made(image)\nfound.size"), made) == "image"
    endless = "def endless(self, image):\n    return self.endless(image)"
    assert needed(call("self.endless(image)"), endless) is None
