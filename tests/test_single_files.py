"""Models in single files, and parts in place of a model's own: the pictures, plans and refusals."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.errors import InputError, ModelError, T2IError
from t2i_cli.events import Event, Notice
from t2i_cli.models import own_models, user_catalog
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.part_source import PART_FIELDS, parse_part_source
from t2i_cli.request import ResolvedRequest
from tests import tiny_checkpoints, tiny_models
from tests.fakes import single_files

SIZE = 64


@dataclass(frozen=True)
class Models:
    """A folder with models, and single files of them."""

    root: Path

    def __truediv__(self, name: str) -> Path:
        return self.root / name


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Folders `sd15`, `sdxl` and `flux`, and the same weights as files."""
    root = tmp_path_factory.mktemp("models")
    tiny_models.save_pipeline(tiny_checkpoints.sd15, root / "sd15")
    tiny_models.save_pipeline(tiny_checkpoints.sdxl, root / "sdxl")
    tiny_models.save("flux", root / "flux")
    single_files.save_checkpoint(root / "sd15", root / "sd15.safetensors")
    single_files.save_checkpoint(root / "sd15", root / "half.safetensors", "float16")
    single_files.save_checkpoint(root / "sd15", root / "fp8.safetensors", "float8_e4m3fn")
    single_files.save_checkpoint(root / "sdxl", root / "sdxl.safetensors")
    single_files.save(single_files.ldm_vae(root / "sd15"), root / "vae.safetensors")
    flux = single_files.load_part(root / "flux", "transformer")
    single_files.save_gguf(flux, root / "flux.gguf", lambda name: "blocks" in name)
    return Models(root)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@dataclass
class Run:
    """A backend with the requests and events of one image."""

    backend: LocalBackend
    request: ResolvedRequest
    events: list[Event]

    def image(self) -> NDArray[np.int64]:
        [made] = self.backend.run([self.request], self.events.append, Flag())
        if not isinstance(made, GeneratedImage):
            raise made.error
        return np.array(made.image).astype(np.int64)

    @property
    def notices(self) -> str:
        return "\n".join(event.text for event in self.events if isinstance(event, Notice))


def run(model: object, *, prompt: str = "a red star", **fields: Any) -> Run:  # noqa: ANN401
    """A request for a model on the CPU, resolved; parts by their paths."""
    backend = LocalBackend(LocalOptions(device="cpu", offline=True))
    values = {"prompt": prompt, "model": str(model), "seed": 1, "steps": 2} | fields
    values |= {"width": SIZE, "height": SIZE}
    for name in PART_FIELDS:
        if name in values:
            values[name] = parse_part_source(str(values[name]))
    request = build_request(values)
    return Run(backend, resolve_request(request, backend.describe(request)), [])


def refusal(call: Callable[[], object]) -> T2IError:
    with pytest.raises(T2IError) as caught:
        call()
    return caught.value


def test_a_file_makes_the_picture_of_the_folder_with_the_same_weights(models: Models) -> None:
    for name in ("sd15", "sdxl"):
        whole = run(models / name).image()
        loaded = run(models / f"{name}.safetensors", base=models / name)
        assert np.array_equal(whole, loaded.image()), name
        assert whole.std() > 5
        assert not loaded.notices
    whole = run(models / "sd15").image()
    half = run(models / "half.safetensors", base=models / "sd15")
    assert np.abs(whole - half.image()).max() <= 3


def test_weights_in_fp8_are_computed_in_the_dtype_of_the_model(models: Models) -> None:
    import torch

    loaded = run(models / "fp8.safetensors", base=models / "sd15")
    target = loaded.backend._target(loaded.request)
    full = run(models / "sd15.safetensors", base=models / "sd15")
    assert target.sizes == full.backend._target(full.request).sizes
    loaded.image()
    assert loaded.backend._loaded
    unet = loaded.backend._loaded.pipe.unet
    assert {weight.dtype for weight in unet.parameters()} == {torch.float32}
    assert sum(weight.nbytes for weight in unet.parameters()) == target.sizes["unet"]


def test_a_gguf_transformer_keeps_its_blocks_in_memory(models: Models) -> None:
    whole = run(models / "flux").image()
    for loaded in (
        run(models / "flux.gguf", base=models / "flux"),
        run(models / "flux", transformer=models / "flux.gguf"),
    ):
        assert np.abs(whole - loaded.image()).mean() < 4
        assert loaded.backend._loaded
        weight = loaded.backend._loaded.pipe.transformer.transformer_blocks[0].attn.to_q.weight
        assert type(weight).__name__ == "GGUFParameter"
        sizes = loaded.backend._target(loaded.request).sizes
        assert sizes["transformer"] == (models / "flux.gguf").stat().st_size
    error = refusal(run(models / "flux.gguf", base=models / "flux", quantize="fp8-storage").image)
    assert error.message.endswith(
        "is quantised already (gguf); --quantize fp8-storage cannot come on top."
    )


def test_a_part_takes_the_place_of_the_models_own(models: Models, tmp_path: Path) -> None:
    own = run(models / "sd15").image()
    other = shutil.copytree(models / "sd15", tmp_path / "other")
    for part in ("vae", "unet", "text_encoder"):
        [file] = (other / part).glob("*.safetensors")
        tensors = single_files.load_part(other, part)
        single_files.save({name: tensor * 1.3 for name, tensor in tensors.items()}, file)
    single_files.save(single_files.ldm_vae(other), tmp_path / "vae.safetensors")
    encoder = other / "text_encoder/model.safetensors"
    pictures = {
        "own parts": run(
            models / "sd15",
            vae=models / "vae.safetensors",
            transformer=models / "sd15.safetensors",
            text_encoder=models / "sd15",
        ).image()
    }
    assert np.array_equal(own, pictures["own parts"])
    pictures |= {
        "vae file": run(models / "sd15", vae=tmp_path / "vae.safetensors").image(),
        "vae folder": run(models / "sd15", vae=other).image(),
        "vae of a file": run(
            models / "sd15.safetensors", base=models / "sd15", vae=other / "vae"
        ).image(),
        "unet": run(models / "sd15", transformer=other).image(),
        "encoder file": run(models / "sd15", text_encoder=encoder).image(),
        "encoder folder": run(models / "sd15", text_encoder=other).image(),
    }
    assert np.array_equal(pictures["vae file"], pictures["vae folder"])
    assert np.array_equal(pictures["vae file"], pictures["vae of a file"])
    assert np.array_equal(pictures["encoder file"], pictures["encoder folder"])
    for name in ("vae file", "unet", "encoder file"):
        assert np.abs(own - pictures[name]).mean() > 1, name


def test_rows_of_other_parts_are_other_rows_by_content_not_by_path(
    models: Models, tmp_path: Path
) -> None:
    copy = shutil.copy(models / "vae.safetensors", tmp_path / "elsewhere.safetensors")
    plain, one, two = (
        run(models / "sd15").request,
        run(models / "sd15", vae=models / "vae.safetensors").request,
        run(models / "sd15", vae=copy).request,
    )
    assert one.identity() == two.identity() != plain.identity()
    assert one.model == plain.model == str(models / "sd15")
    assert one.vae and one.vae.sha256
    assert one.to_json()["vae"] == {
        "source": str(models / "vae.safetensors"),
        "sha256": one.vae.sha256,
    }
    folder = run(models / "sd15", vae=models / "sd15").request
    assert folder.identity() not in {plain.identity(), one.identity()}
    assert "vae" not in plain.to_json()


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (
        lambda t: t.pop("model.diffusion_model.out.0.weight"),
        "lacks weights of its unet: conv_norm_out.weight",
    ),
    "shape": (
        lambda t: t.update({"first_stage_model.decoder.conv_out.bias": _zeros(5)}),
        "decoder.conv_out.bias expected shape",
    ),
    "no text": (
        lambda t: t.pop("cond_stage_model.transformer.text_model.final_layer_norm.bias"),
        "lacks weights of its text_encoder: ",
    ),
}


def _zeros(size: int) -> object:
    import torch

    return torch.zeros(size)


@pytest.mark.parametrize("case", DAMAGE)
def test_weights_that_do_not_fit_are_named(case: str, models: Models, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    change, said = DAMAGE[case]
    tensors = load_file(models / "sd15.safetensors")
    change(tensors)
    file = single_files.save(tensors, tmp_path / "changed.safetensors")
    error = refusal(run(file, base=models / "sd15").image)
    assert isinstance(error, ModelError)
    assert said in error.message and "changed.safetensors" in error.message


def test_numbers_that_no_layer_takes_are_told(models: Models, tmp_path: Path) -> None:
    file = single_files.save_checkpoint(
        models / "sd15",
        tmp_path / "more.safetensors",
        more={
            "model.diffusion_model.input_blocks.9.0.in_layers.0.weight": _zeros(7),
            "model_ema.decay": _zeros(1),
        },
    )
    loaded = run(file, base=models / "sd15")
    loaded.image()
    assert "7 of the " in loaded.notices and "of the unet in" in loaded.notices


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "no file": ({"model": "none.safetensors"}, "There is no file "),
    "no vae": ({"model": "sd15", "vae": "none"}, "There is no VAE "),
    "base of a folder": ({"model": "sd15", "base": "sd15"}, "--base goes with a single file, and "),
    "vae as model": (
        {"model": "vae.safetensors"},
        "vae.safetensors is a VAE, one part of a model.",
    ),
    "other base": (
        {"model": "sd15.safetensors", "base": "sdxl"},
        "sd15.safetensors is of Stable Diffusion 1, and ",
    ),
    "other family": (
        {"model": "sdxl", "transformer": "sd15.safetensors"},
        "sd15.safetensors is of Stable Diffusion 1, and ",
    ),
    "other latents": ({"model": "sd15", "vae": "flux"}, "flux is a VAE with latent_channels 1, "),
    "other text": (
        {"model": "sdxl", "transformer": "sd15"},
        "sd15 is a transformer or UNet with cross_attention_dim 768, ",
    ),
    "no vae in it": ({"model": "sd15", "vae": "flux.gguf"}, "flux.gguf holds no VAE: "),
    "other encoder": (
        {"model": "flux", "text_encoder": "sd15"},
        "sd15 is a text encoder with hidden_size 768, ",
    ),
    "no config": (
        {"model": "sd15.safetensors"},
        "sd15.safetensors needs the configs of sd15: stable-diffusion-v1-5/",
    ),
    "revision": (
        {"model": "sd15.safetensors", "base": "sd15", "revision": "main"},
        "is a file, which has no revisions.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_a_weight_is_loaded(
    case: str, models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values, said = REFUSED[case]
    monkeypatch.chdir(models.root)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    parts = {n: v if n == "revision" else str(models / v) for n, v in values.items()}
    error = refusal(lambda: run(parts.pop("model"), **parts))
    assert said in error.message
    assert isinstance(error, InputError | ModelError)


def test_a_file_that_predicts_velocities_gets_such_a_scheduler(
    models: Models, tmp_path: Path
) -> None:
    file = single_files.save_checkpoint(
        models / "sdxl", tmp_path / "v.safetensors", more={"v_pred": _zeros(0), "ztsnr": _zeros(0)}
    )
    found = run(file, base=models / "sdxl")
    config = found.backend._target(found.request).folder / "scheduler/scheduler_config.json"
    told = json.loads(config.read_text())
    assert told["prediction_type"] == "v_prediction"
    assert told["rescale_betas_zero_snr"] is True
    plain = run(models / "sdxl.safetensors", base=models / "sdxl")
    config = plain.backend._target(plain.request).folder / "scheduler/scheduler_config.json"
    assert json.loads(config.read_text())["prediction_type"] == "epsilon"


def test_a_folder_is_composed_once_and_only_ours_is_believed(
    models: Models, tmp_path: Path
) -> None:
    for _ in range(2):
        run(models / "sd15.safetensors", base=models / "sd15")
    assert len(list((tmp_path / "cache/t2i/composed").iterdir())) == 1
    planted = shutil.copytree(models / "sd15", tmp_path / "planted")
    (planted / "composition.json").write_text(
        '{"base": "/", "files": {"unet": {"file": "/etc/passwd", "whole": true}}}'
    )
    found = run(planted)
    assert np.array_equal(found.image(), run(models / "sd15").image())


def test_ids_depend_on_the_files_content_and_not_on_its_path(
    models: Models, tmp_path: Path
) -> None:
    def row_id(file: Path) -> str:
        return run(file, base=models / "sd15").request.identity()

    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    for file in (one, other):
        shutil.copy(models / "sd15.safetensors", file)
    assert row_id(one) == row_id(other)
    before = row_id(one)
    shutil.copy(models / "half.safetensors", one)
    assert row_id(one) != before


def test_a_single_file_is_no_base(models: Models) -> None:
    file = models / "sd15.safetensors"
    error = refusal(lambda: run(file, base=file))
    assert (error.exit_code, getattr(error, "field", None)) == (2, "base")
    assert error.message == f"--base takes a model with configs, and {file} is a single file."


def test_the_base_of_a_file_with_everything_needs_no_weights(
    models: Models, tmp_path: Path
) -> None:
    configs = shutil.copytree(
        models / "sd15", tmp_path / "configs", ignore=shutil.ignore_patterns("*.safetensors")
    )
    found = run(models / "sd15.safetensors", base=configs)
    assert np.array_equal(found.image(), run(models / "sd15").image())


def test_weights_saved_quantised_are_not_quantised_anew(models: Models, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "sd15", tmp_path / "saved")
    tiny_models.edit_json(
        folder / "unet/config.json", quantization_config={"quant_method": "bitsandbytes"}
    )
    asked = run(folder, quantize="fp8-storage") if _has("bitsandbytes") else None
    if asked is None:
        error = refusal(lambda: run(folder))
        assert "needs bitsandbytes, which is not installed" in error.message
        assert error.hint and "t2i-cli[" in error.hint
    else:
        assert "is quantised already (bitsandbytes)" in refusal(asked.image).message


def _has(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def test_weights_in_fp8_with_a_factor_beside_them_are_multiplied(
    models: Models, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for name, tensor in load_file(models / "sd15.safetensors").items():
        if name.startswith("model.diffusion_model.") and tensor.dim() == 2:
            factor = tensor.abs().max() / 100
            tensors[name] = (tensor / factor).to(torch.float8_e4m3fn)
            tensors[name.replace(".weight", ".scale_weight")] = factor
            tensors[name.replace(".weight", ".scale_input")] = torch.ones(())
        else:
            tensors[name] = tensor
    file = single_files.save(tensors, tmp_path / "scaled.safetensors")
    loaded = run(file, base=models / "sd15")
    whole = run(models / "sd15").image()
    assert np.abs(whole - loaded.image()).mean() < 10
    assert not loaded.notices
    folder = shutil.copytree(models / "sd15/text_encoder", tmp_path / "encoder")
    encoder = single_files.load_part(models / "sd15", "text_encoder")
    marked = encoder | {"text_model.encoder.layers.0.mlp.fc1.scale_weight": torch.ones(())}
    single_files.save(marked, folder / "model.safetensors")
    marked_too = run(models / "sd15", text_encoder=folder / "model.safetensors")
    assert np.array_equal(whole, marked_too.image())


def test_an_own_name_stands_for_a_file_with_its_base_and_parts(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "config.toml"))
    parts: dict[str, Any] = {"base": models / "sd15", "vae": models / "vae.safetensors"}
    given = {name: parse_part_source(str(path)) for name, path in parts.items()}
    entry = own_models.new_own_model("tiny", str(models / "sd15.safetensors"), given, lora_dir=None)
    user_catalog.write_table("tiny", entry.to_table(), overwrite=False)
    named, plain = run("tiny"), run(models / "sd15.safetensors", **parts)
    assert named.request == plain.request
    assert named.request.identity() == plain.request.identity()
    assert np.array_equal(named.image(), plain.image())
    assert run("tiny", vae=models / "sd15").request.vae != named.request.vae
    (models / "vae.safetensors").rename(models / "moved.safetensors")
    try:
        gone = f"Your model tiny has {models / 'vae.safetensors'} as its vae, which is not there."
        assert refusal(lambda: run("tiny")).message == gone
        assert run("tiny", vae=models / "moved.safetensors").request.steps == 2
    finally:
        (models / "moved.safetensors").rename(models / "vae.safetensors")
