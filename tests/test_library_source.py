"""What is read of the libraries' source is what an import says; what is not certain is not said."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2i_cli.backends.local import torch_build
from t2i_cli.models import class_facts, libraries, library_source, transformers_source
from t2i_cli.models.class_facts import PipelineFacts
from tests import tiny_models

ANSWERS = """
import contextlib, io, json, sys
from t2i_cli.backends.local import torch_build
from t2i_cli.cli import main as cli
print(json.dumps(torch_build.is_cpu_only()))
heavy = {"torch", "diffusers", "transformers", "numpy"}
for arguments in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli._run(arguments)
    print(json.dumps([code, said.getvalue(), sorted(heavy & set(sys.modules))]))
"""
"""Several commands in one process, and what has been imported by then."""


def test_plans_and_refusals_import_no_library(t2i_env: dict[str, str], tmp_path: Path) -> None:
    own = tiny_models.copy_postcard(tmp_path / "own")
    hollow = tiny_models.copy_postcard(tmp_path / "hollow")
    for weights in (hollow / "unet").glob("*.safetensors"):
        weights.unlink()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a star"}\n{"prompt": "a tree"}\n')
    command = ["generate", "a red star", "-m"]
    cases = [
        ([*command, "postcard", "--dry-run", "-v"], 0, "measures"),
        ([*command, "postcard", "--dry-run", "--json"], 0, '"working_mib"'),
        ([*command, str(own), "--dry-run"], 0, "float32"),
        ([*command, str(own), "--dry-run", "--attention-slicing"], 0, "attention-slicing"),
        (["batch", "rows.jsonl", "-m", str(own), "--dry-run", "--batch-size", "2"], 0, "2 images"),
        ([*command, str(own), "--size", "16384x16384"], 7, "are free"),
        ([*command, str(own), "--size", "16384x16384", "--json"], 7, '"out_of_memory"'),
        ([*command, str(own), "--scheduler", "nosuch"], 2, "is unknown"),
        ([*command, str(own), "--size", "130x128"], 2, "not a multiple of"),
        ([*command, str(hollow), "--dry-run"], 9, "holds no weights"),
        # Last: it asks torch which devices there are.
        ([*command, str(own), "--device", "cuda:3"], 2, "There is no device 'cuda:3'"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS],
        input=json.dumps([arguments for arguments, _, _ in cases]),
        env=t2i_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    is_cpu_only, *answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(cases)
    for (arguments, expected, phrase), (code, said, imported) in zip(cases, answers, strict=True):
        # A build for GPUs is asked which there are, and any build why it has not the one asked for.
        asks_torch = not is_cpu_only or "--device" in arguments
        allowed = {"torch", "numpy"} if asks_torch else set()
        assert (code, set(imported) - allowed) == (expected, set()), (arguments, said)
        assert phrase in said, (arguments, said)


def facts_equal(read: PipelineFacts | None, imported: PipelineFacts) -> bool:
    """Whether what t2i asks of a pipeline class is the same; types and other defaults are not."""
    if read is None:
        return False
    for one, other in ((read.call, imported.call), (read.init, imported.init)):
        if [(p.name, p.kind) for p in one.values()] != [(p.name, p.kind) for p in other.values()]:
            return False
        for a, b in zip(one.values(), other.values(), strict=True):
            if (a.default is a.empty) != (b.default is b.empty):
                return False
            if a.name in class_facts._READ_DEFAULTS and a.default != b.default:
                return False
    return (read.name, read.module, read.optional_components) == (
        imported.name,
        imported.module,
        imported.optional_components,
    )


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusion3Pipeline",
        "FluxPipeline",
        "Flux2KleinPipeline",
        "ZImagePipeline",
        "QwenImagePipeline",
        "HiDreamImagePipeline",
    ],
)
def test_the_source_of_a_pipeline_says_what_its_class_says(name: str) -> None:
    imported = class_facts.facts_of_class(libraries.import_pipeline_class(name))
    assert facts_equal(class_facts._pipeline_from_source(name), imported)


NOT_READ = {"VersatileDiffusionTextToImagePipeline"}
"""Pipelines that diffusers offers under conditions which the source does not settle."""


@pytest.mark.full
def test_the_source_of_every_pipeline_says_what_its_class_says() -> None:
    from tests.test_local_components import named, text_to_image

    libraries.import_diffusers()
    with libraries.suppress_warnings():
        classes = text_to_image()
        different = {
            cls.__name__
            for cls in classes
            if not facts_equal(
                class_facts._pipeline_from_source(cls.__name__), class_facts.facts_of_class(cls)
            )
        }
        kinds = {
            tuple(pair)
            for cls in classes
            for each in cls._get_signature_types().values()
            for kind in each
            if (pair := named(kind))
        }
    assert different == NOT_READ
    unknown = {cls for library, cls in kinds if not class_facts.is_known_component(library, cls)}
    # One is missing below diffusers' TYPE_CHECKING, the other in transformers' __all__.
    assert unknown == {"StableCascadeUNet", "T5GemmaEncoder"}
    assert len(kinds) > 90


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("transformers", "CLIPFeatureExtractor"),  # renamed by diffusers
        ("transformers", "T5TokenizerFast"),  # an alias of transformers 5
        ("transformers", "Qwen2_5_VLForConditionalGeneration"),
        ("stable_diffusion", "StableDiffusionSafetyChecker"),
        ("diffusers", "AutoencoderKLQwenImage"),
    ],
)
def test_components_are_found_in_the_source(library: str, name: str) -> None:
    assert class_facts.is_known_component(library, name)


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("diffusers", "StableDiffusionPipeline"),
        ("diffusers", "logging"),
        ("transformers", "AutoTokenizer"),
        ("transformers", "Trainer"),
        ("transformers", "CLIPTextConfig"),
        ("pipeline_utils", "DiffusionPipeline"),
        ("utils", "os"),
        ("os", "system"),
    ],
)
def test_what_is_no_component_is_not_found(library: str, name: str) -> None:
    assert not class_facts.is_known_component(library, name)


def test_methods_and_options_are_found_in_bases() -> None:
    assert class_facts.has_method("UNet2DConditionModel", "set_attention_slice")
    assert not class_facts.has_method("FluxTransformer2DModel", "set_attention_slice")
    assert class_facts.constructor_parameters("FluxTransformer2DModel")["guidance_embeds"]
    assert not class_facts.constructor_parameters("NoSuchModel")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in the place of diffusers and torch, with nothing in it."""
    cached = (library_source.read_module, library_source.find_class)
    monkeypatch.setattr(library_source, "package_folder", lambda name: tmp_path)
    for each in cached:
        each.cache_clear()
    yield tmp_path
    for each in cached:
        each.cache_clear()


SOURCE = """
from typing import TYPE_CHECKING
from .other import Base as Renamed
from elsewhere import Foreign

if TYPE_CHECKING:
    from .other import Shown
else:
    Shown = make()
if is_mystery_available():
    class Perhaps: ...
try:
    if not is_torch_available():
        raise OptionalDependencyNotAvailable()
except OptionalDependencyNotAvailable:
    from .dummies import Installed
else:
    from .other import Installed
class Left(Renamed):
    value = 1
class Right(Renamed):
    value = 2
    def method(self, a, b=1, *, c=None, **rest): ...
class Both(Left, Right): ...
class Odd(make_base()): ...
Alias = Both
Loop = Loop
"""


def test_only_what_is_certain_is_found(package: Path) -> None:
    (package / "__init__.py").write_text(SOURCE)
    (package / "other.py").write_text(
        "class Base:\n    method = None\nclass Shown: ...\nclass Installed: ...\n"
    )
    (package / "broken.py").write_text("class Base(:\n")
    find = library_source.find_class
    for name, module in (("Shown", "other"), ("Installed", "other"), ("Renamed", "other")):
        found = find("diffusers", name)
        assert found is not None
        assert found.module == f"diffusers.{module}"
    assert find("diffusers", "Perhaps") is None
    assert find("diffusers", "Loop") is None
    assert find("diffusers", "Absent") is None
    assert find("diffusers.broken", "Base") is None
    foreign, both = find("diffusers", "Foreign"), find("diffusers", "Alias")
    assert foreign is not None and foreign.node is None
    assert both is not None
    order = library_source.ancestors(both)
    assert order is not None
    assert [each.name for each in order] == ["Both", "Left", "Right", "Base"]
    assert class_facts._literal_attribute(both, "value") == 1
    parameters = class_facts._method_parameters(both, "method")
    assert parameters is not None
    assert [str(each) for each in parameters.values()] == ["self", "a", "b=1", "c=None", "**rest"]
    odd = find("diffusers", "Odd")
    assert odd is not None and library_source.ancestors(odd) is None


VERSION = "cuda: Optional[str] = None\nhip: Optional[str] = None\nxpu: Optional[str] = None\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (VERSION, True),
        (VERSION.replace("None", "'13.0'", 1), False),
        (VERSION.replace("hip: Optional[str] = None", "hip = '6.4'"), False),
        ("cuda = None\n", False),
        ("", False),
    ],
)
def test_a_build_for_cpus_alone_is_known(
    source: str, expected: bool, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "version.py").write_text(source)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert torch_build.is_cpu_only() is expected
    monkeypatch.setitem(sys.modules, "torch", object())
    assert not torch_build.is_cpu_only()


def test_the_renamed_class_of_diffusers_is_followed() -> None:
    found = transformers_source.find_model_class("CLIPFeatureExtractor")
    assert found is not None and found.name in {"CLIPImageProcessor", "CLIPImageProcessorPil"}


def test_a_loaded_library_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "diffusers", raising=False)
    for name in library_source._SWITCHES:
        monkeypatch.delenv(name, raising=False)
    assert library_source.is_readable()
    monkeypatch.setenv("USE_TORCH", "0")
    assert not library_source.is_readable()
    monkeypatch.delenv("USE_TORCH")
    monkeypatch.setitem(sys.modules, "diffusers", object())
    assert not library_source.is_readable()


def test_a_class_is_read_once() -> None:
    """A server and a worker describe their model for each request."""
    facts = class_facts.facts_of_name("StableDiffusionPipeline")
    assert class_facts.facts_of_name("StableDiffusionPipeline") is facts
    assert facts.method("__call__") is facts.method("__call__")
    cls = libraries.import_pipeline_class("StableDiffusionPipeline")
    imported = class_facts.facts_of_class(cls)
    assert class_facts.facts_of_class(cls) is imported
    assert imported.method("check_inputs") is imported.method("check_inputs") is not None
