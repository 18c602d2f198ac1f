"""What a pipeline made is looked at: numbers that are none, sizes, and how many there are."""

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions, pipeline_output
from t2i_cli.errors import ModelError, T2IError
from t2i_cli.models.request_resolution import resolve_request
from t2i_cli.request import GenerateRequest
from tests import factories, tiny_models
from tests.conftest import T2I

VAE = "vae/diffusion_pytorch_model.safetensors"


def loaded(**pipe: object) -> SimpleNamespace:
    return SimpleNamespace(pipe=SimpleNamespace(**pipe), dtype="float16")


def test_no_numbers_are_no_picture(t2i: T2I, tmp_path: Path) -> None:
    folder = tiny_models.copy_postcard(tmp_path / "model")
    tiny_models.edit_tensor(folder / VAE, "decoder.conv_out.bias", float("nan"))
    done = t2i("generate", "a red star", "-m", folder, "--steps", "1", "-o", "out/")
    assert done.returncode == 9
    error, hint = done.stderr.splitlines()[-2:]
    assert error == (
        "error: StableDiffusionPipeline made no picture in float32, but values that are no numbers "
        "(NaN)."
    )
    assert "--dtype bfloat16" in hint
    assert not list(tmp_path.glob("out/*"))
    assert "RuntimeWarning" not in done.stderr


def test_no_numbers_in_one_image_of_a_pass_are_its_own_failure(tmp_path: Path) -> None:
    folder = tiny_models.copy_postcard(tmp_path / "model")
    backend = LocalBackend(LocalOptions(batch_size=3))
    prompts = ("a red star", "a blue house", "a red star")
    requests = [
        resolve_request(request, backend.describe(request))
        for prompt in prompts
        for request in [GenerateRequest(prompt=prompt, model=str(folder), seed=1, steps=1)]
    ]
    from transformers import CLIPTokenizer

    (token,) = CLIPTokenizer.from_pretrained(folder / "tokenizer")(
        "house", add_special_tokens=False
    )["input_ids"]
    weights = folder / "text_encoder/model.safetensors"
    tensors = load_file(weights)
    tensors["embeddings.token_embedding.weight"][token] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    outcomes = list(backend.run(requests, lambda _: None, threading.Event()))
    assert [type(outcome) for outcome in outcomes] == [GeneratedImage, Failure, GeneratedImage]
    assert isinstance(outcomes[1], Failure)
    assert "no numbers (NaN)" in outcomes[1].error.message


@pytest.mark.parametrize("returned", ["images * 2", "images[1:]"])
def test_another_number_of_images_is_an_error(
    returned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder = tiny_models.copy_postcard(tmp_path / "model")
    tiny_models.edit_json(folder / "model_index.json", _class_name=["own", "OwnPipeline"])
    (folder / "own.py").write_text(
        "from diffusers import StableDiffusionPipeline\n\n\n"
        "class OwnPipeline(StableDiffusionPipeline):\n"
        "    def __call__(self, prompt=None, height=None, width=None, num_inference_steps=9,\n"
        "                 guidance_scale=2.0, generator=None):\n"
        "        images = super().__call__(prompt, height, width, num_inference_steps,\n"
        "            guidance_scale=guidance_scale, generator=generator).images\n"
        f"        return ({returned},)\n"
    )
    backend = LocalBackend(LocalOptions(trust_remote_code=True))
    request = GenerateRequest(prompt="a red star", model=str(folder), seed=1, steps=1)
    (outcome,) = backend.run(
        [resolve_request(request, backend.describe(request))], lambda _: None, threading.Event()
    )
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error, ModelError)
    assert "images where 1 were asked for." in outcome.error.message


def test_pictures_are_rounded_as_diffusers_rounds_them() -> None:
    from diffusers.image_processor import VaeImageProcessor

    made_of = np.linspace(0, 1, 48 * 64 * 3, dtype=np.float32).reshape(1, 48, 64, 3)
    (found,) = pipeline_output.check_output(loaded(), [factories.request()], (made_of,))  # type: ignore[arg-type]
    assert isinstance(found, pipeline_output.PipelineOutput)
    (expected,) = VaeImageProcessor.numpy_to_pil(made_of)
    assert found.image.tobytes() == expected.tobytes()
    assert not found.withheld


@pytest.mark.parametrize("name", ["nsfw_content_detected", "nsfw_detected"])
def test_every_safety_checkers_word_is_heard(name: str) -> None:
    from diffusers.utils.outputs import BaseOutput

    output = BaseOutput(images=[factories.picture()], **{name: [True]})
    (found,) = pipeline_output.check_output(loaded(), [factories.request()], output)  # type: ignore[arg-type]
    assert isinstance(found, pipeline_output.PipelineOutput)
    assert found.withheld


def test_another_size_is_an_error() -> None:
    pictures = ([factories.picture(32, 48)],)
    (found,) = pipeline_output.check_output(loaded(), [factories.request()], pictures)  # type: ignore[arg-type]
    assert isinstance(found, T2IError)
    assert "made 32x48 pixels where 64x48 were asked for." in found.message
