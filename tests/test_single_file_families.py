"""Single files of each family that diffusers reads make the pictures of their folders.

The tensors are tiny and named as in the families' own files or ComfyUI's. `full` has FLUX.1, Chroma
and Lumina 2 in their own layouts, which diffusers reads at their real widths only.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from t2i_cli.errors import InputError
from t2i_cli.models import family_bases, part_check
from t2i_cli.models.checkpoint_file import read_checkpoint
from t2i_cli.models.libraries import LibraryObject
from tests import (
    tiny_checkpoints,
    tiny_encoders,
    tiny_language,
    tiny_models,
    tiny_transformers,
    tiny_vision_language,
)
from tests.conftest import T2I
from tests.fakes import single_files
from tests.fakes import transformer_layouts as layouts
from tests.fakes.single_files import Tensors
from tests.test_single_files import refusal, run

Layout = Callable[[Tensors], Tensors]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


FAMILIES: dict[str, tuple[Callable[[], LibraryObject], Layout, str | None]] = {
    "sd3": (tiny_checkpoints.sd3, layouts.stable_diffusion_3, None),
    "auraflow": (tiny_encoders.aura_flow, layouts.aura_flow, "auraflow"),
    "sana": (tiny_language.sana, layouts.sana, "sana"),
    "z-image": (tiny_language.z_image, layouts.z_image, "z-image"),
    "qwen-image": (tiny_language.qwen_image, layouts.as_diffusers, "qwen-image"),
    "flux2": (tiny_language.flux2_klein, layouts.flux_2, None),
    "krea2": (tiny_vision_language.builders()["Krea2Pipeline"], layouts.krea_2, "krea2"),
    "ernie-image": (
        tiny_transformers.builders()["ErnieImagePipeline"],
        layouts.as_diffusers,
        "ernie-image",
    ),
    "flux": (tiny_models.families()["flux"], layouts.as_diffusers, "flux-dev"),
    "chroma": (tiny_encoders.chroma, layouts.as_diffusers, "chroma"),
    "lumina2": (tiny_language.lumina2, layouts.as_diffusers, "lumina2"),
}
"""Pipelines with their layouts, and the family that is told: the width of some tells it only."""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_transformer_alone_makes_the_picture_of_its_folder(name: str, tmp_path: Path) -> None:
    build, layout, family = FAMILIES[name]
    folder = tiny_models.save_pipeline(build, tmp_path / "folder")
    own = single_files.load_part(folder, "transformer")
    whole = run(folder).image()
    assert whole.std() > 5
    prefix = "" if name in {"flux2", "sana"} else layouts.COMFY
    file = single_files.save(
        layouts.prefixed(layout, prefix)(own), tmp_path / f"{name}.safetensors"
    )
    assert (read_checkpoint(file).kind, read_checkpoint(file).family) == ("transformer", family)
    loaded = run(file, base=folder)
    assert np.array_equal(whole, loaded.image())
    [note] = loaded.notices.splitlines()
    assert note.startswith(f"Read from {name}.safetensors: transformer; from folder: ")
    assert "vae" in note


@pytest.mark.parametrize("name", ["flux2", "sana"])
def test_the_prefix_of_other_programs_makes_no_difference(name: str, tmp_path: Path) -> None:
    build, layout, _ = FAMILIES[name]
    folder = tiny_models.save_pipeline(build, tmp_path / "folder")
    own = layout(single_files.load_part(folder, "transformer"))
    plain = single_files.save(own, tmp_path / "plain.safetensors")
    other = single_files.save(
        layouts.prefixed(dict, layouts.COMFY)(own), tmp_path / "other.safetensors"
    )
    first, second = (run(file, base=folder).image() for file in (plain, other))
    assert np.array_equal(first, second)


def _ldm_only(folder: Path, file: Path) -> Path:
    """A UNet alone by ldm's names, without a prefix."""
    config = single_files.read_config(folder, "unet")
    unet = single_files.load_part(folder, "unet")
    return single_files.save(
        {single_files.unet_name(name, config): tensor for name, tensor in unet.items()}, file
    )


def test_stable_diffusion_2_reads_its_encoder_by_open_clips_names(tmp_path: Path) -> None:
    folder = tiny_models.save_pipeline(tiny_checkpoints.sd2, tmp_path / "sd2")
    whole = run(folder).image()
    file = single_files.save_checkpoint(folder, tmp_path / "sd2.safetensors")
    assert read_checkpoint(file).family == "sd2"
    assert read_checkpoint(file).parts == ("text_encoder", "unet", "vae")
    loaded = run(file, base=folder)
    assert np.array_equal(whole, loaded.image())
    assert not loaded.notices
    alone = _ldm_only(folder, tmp_path / "unet.safetensors")
    assert read_checkpoint(alone).kind == "unet"
    assert np.array_equal(whole, run(alone, base=folder).image())


def _all_in_one(folder: Path, transformer: Tensors, encoders: Mapping[str, str]) -> Tensors:
    """A checkpoint as ComfyUI has it: a transformer, a VAE, and text encoders by their prefixes."""
    found = {layouts.COMFY + name: tensor for name, tensor in transformer.items()}
    found |= {f"vae.{name}": tensor for name, tensor in single_files.ldm_vae(folder).items()}
    for part, prefix in encoders.items():
        clip = "clip" in prefix
        found |= {
            prefix + (single_files.text_model(name) if clip else name): tensor
            for name, tensor in single_files.load_part(folder, part).items()
        }
    return found


SD3_ENCODERS = {
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
FLUX_ENCODERS = {
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.t5xxl.transformer.",
}


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 3 in a folder; its first encoder does not project, as diffusers loads it from files."""
    import torch

    folder = tmp_path_factory.mktemp("models") / "sd3"
    tiny_models.save_pipeline(tiny_checkpoints.sd3, folder)
    encoder = single_files.load_part(folder, "text_encoder")
    encoder["text_projection.weight"] = torch.eye(len(encoder["text_projection.weight"]))
    single_files.save(encoder, folder / "text_encoder/model.safetensors")
    return folder


def _without_weights(folder: Path, target: Path, *parts: str) -> Path:
    """A folder whose parts have configs only."""
    import shutil

    shutil.copytree(folder, target)
    for part in parts:
        for file in (target / part).glob("*.safetensors"):
            file.unlink()
    return target


def test_parts_inside_are_used_and_what_is_missing_is_the_bases(sd3: Path, tmp_path: Path) -> None:
    whole = run(sd3).image()
    transformer = layouts.stable_diffusion_3(single_files.load_part(sd3, "transformer"))
    tensors = _all_in_one(sd3, transformer, SD3_ENCODERS)
    file = single_files.save(tensors, tmp_path / "all.safetensors")
    inside = ("text_encoder", "text_encoder_2", "transformer", "vae")
    assert {*inside, "text_encoder_3"} == set(read_checkpoint(file).parts)
    configs = _without_weights(sd3, tmp_path / "configs", *SD3_ENCODERS, "transformer", "vae")
    loaded = run(file, base=configs)
    assert np.array_equal(whole, loaded.image())
    assert not loaded.notices
    clips = {part: SD3_ENCODERS[part] for part in ("text_encoder", "text_encoder_2")}
    file = single_files.save(_all_in_one(sd3, transformer, clips), tmp_path / "clips.safetensors")
    base = _without_weights(sd3, tmp_path / "t5", *clips, "transformer", "vae")
    loaded = run(file, base=base)
    assert np.array_equal(whole, loaded.image())
    assert loaded.notices.endswith("; from t5: text_encoder_3.")


def test_a_checkpoint_of_flux_brings_its_t5(tmp_path: Path) -> None:
    folder = tiny_models.save("flux", tmp_path / "flux")
    whole = run(folder).image()
    own = single_files.load_part(folder, "transformer")
    tensors = _all_in_one(folder, own, FLUX_ENCODERS)
    file = single_files.save(tensors, tmp_path / "flux.safetensors")
    assert read_checkpoint(file).parts == ("text_encoder", "text_encoder_2", "transformer", "vae")
    configs = _without_weights(folder, tmp_path / "bare", *FLUX_ENCODERS, "transformer", "vae")
    loaded = run(file, base=configs)
    assert np.array_equal(whole, loaded.image())
    assert not loaded.notices
    name = FLUX_ENCODERS["text_encoder_2"] + "encoder.final_layer_norm.weight"
    tensors.pop(name)
    error = refusal(run(single_files.save(tensors, file), base=configs).image)
    assert "lacks weights of its text_encoder_2: encoder.final_layer_norm.weight" in error.message


@pytest.mark.parametrize("scaled", [False, True])
def test_checkpoints_in_fp8_make_nearly_the_same_picture(
    sd3: Path, tmp_path: Path, scaled: bool
) -> None:
    import torch

    whole = run(sd3).image()
    transformer = layouts.stable_diffusion_3(single_files.load_part(sd3, "transformer"))
    found: Tensors = {}
    for name, tensor in _all_in_one(sd3, transformer, SD3_ENCODERS).items():
        if scaled and tensor.dim() == 2 and name.endswith(".weight") and "vae" not in name:
            factor = tensor.abs().max() / 100
            found[name] = (tensor / factor).to(torch.float8_e4m3fn)
            found[name.removesuffix("weight") + "scale_weight"] = factor
        else:
            found[name] = tensor.to(torch.float32 if scaled else torch.float8_e4m3fn)
    if scaled:
        found[layouts.COMFY + "scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
        found["text_encoders.t5xxl.transformer.scaled_fp8"] = torch.zeros(0)
    file = single_files.save(found, tmp_path / "fp8.safetensors")
    loaded = run(file, base=sd3)
    assert np.abs(whole - loaded.image()).mean() < 15
    assert not loaded.notices
    pipe = loaded.backend._loaded and loaded.backend._loaded.pipe
    assert pipe
    for part in (*SD3_ENCODERS, "transformer", "vae"):
        assert {weight.dtype for weight in getattr(pipe, part).parameters()} == {torch.float32}


def test_a_gguf_transformer_of_other_families_is_near_its_folder(tmp_path: Path) -> None:
    cases: tuple[tuple[str, Layout, str], ...] = (
        ("sd3", layouts.stable_diffusion_3, "sd3"),
        ("z-image", layouts.z_image, "lumina2"),
        ("qwen-image", layouts.as_diffusers, "qwen_image"),
    )
    for name, layout, architecture in cases:
        folder = tiny_models.save_pipeline(FAMILIES[name][0], tmp_path / name)
        own = layout(single_files.load_part(folder, "transformer"))
        file = single_files.save_gguf(
            own,
            tmp_path / f"{name}.gguf",
            lambda name: "layers" in name or "block" in name,
            architecture,
        )
        loaded = run(file, base=folder)
        assert np.abs(run(folder).image() - loaded.image()).mean() < 8, name
        assert loaded.backend._loaded
        kinds = {type(w).__name__ for w in loaded.backend._loaded.pipe.transformer.parameters()}
        assert "GGUFParameter" in kinds, name


def _gguf_names(architecture: str, model: LibraryObject) -> dict[str, str]:
    """llama.cpp's names of a text encoder's tensors, by transformers' own."""
    from transformers import modeling_gguf_pytorch_utils

    reading: LibraryObject = modeling_gguf_pytorch_utils
    process = reading.TENSOR_PROCESSORS.get(architecture, reading.TensorProcessor)
    names = reading.get_gguf_hf_weights_map(model, process(config={}))
    return {ours: theirs for theirs, ours in names.items()}


def _gguf_encoder(folder: Path, part: str, file: Path, architecture: str) -> Path:
    import transformers

    cls = getattr(transformers, single_files.read_config(folder, part)["architectures"][0])
    names = _gguf_names(architecture, cls.from_pretrained(folder / part))
    shift = architecture == "gemma2"  # llama.cpp's norms of Gemma have 1 added
    tensors = {
        names[name]: tensor + 1 if shift and "norm" in name else tensor
        for name, tensor in single_files.load_part(folder, part).items()
        if name in names
    }
    return single_files.save_gguf(tensors, file, lambda name: "blk." in name, architecture)


@pytest.mark.parametrize(
    ("name", "part", "architecture"),
    [
        ("flux", "text_encoder_2", "t5encoder"),
        ("z-image", "text_encoder", "qwen3"),
        ("lumina2", "text_encoder", "gemma2"),
    ],
)
def test_text_encoders_are_read_from_gguf(
    name: str, part: str, architecture: str, tmp_path: Path
) -> None:
    folder = tiny_models.save_pipeline(FAMILIES[name][0], tmp_path / "folder")
    file = _gguf_encoder(folder, part, tmp_path / "encoder.gguf", architecture)
    whole, other = run(folder), run(folder, text_encoder=file)
    assert np.abs(whole.image() - other.image()).mean() < 10
    assert not other.notices
    sizes = [each.backend._target(each.request).sizes[part] for each in (whole, other)]
    assert sizes[0] == sizes[1]
    if name != "flux":
        error = refusal(lambda: run(folder, text_encoder=_renamed_gguf(file, "qwen2vl")))
        assert "is a GGUF file of the architecture qwen2vl; t2i makes a " in error.message


def _renamed_gguf(file: Path, architecture: str) -> Path:
    """A copy of a file that names another architecture."""
    import gguf

    reader = gguf.GGUFReader(file)
    tensors = {t.name: t for t in reader.tensors}
    writer = gguf.GGUFWriter(file.with_name("other.gguf"), architecture)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file.with_name("other.gguf")


def test_a_t5_in_fp8_with_factors_takes_the_models_place(tmp_path: Path) -> None:
    import torch

    folder = tiny_models.save("flux", tmp_path / "flux")
    found: Tensors = {}
    for name, tensor in single_files.load_part(folder, "text_encoder_2").items():
        found[name] = tensor
        if ".SelfAttention." in name or ".DenseReluDense." in name:
            factor = tensor.abs().max() / 100
            found[name] = (tensor / factor).to(torch.float8_e4m3fn)
            found[name.removesuffix("weight") + "scale_weight"] = factor
    found["scaled_fp8"] = torch.zeros(0).to(torch.float8_e4m3fn)
    file = single_files.save(found, tmp_path / "t5xxl_fp8_e4m3fn_scaled.safetensors")
    whole, loaded = run(folder), run(folder, text_encoder=file)
    assert np.abs(whole.image() - loaded.image()).mean() < 10
    sizes = [each.backend._target(each.request).sizes for each in (whole, loaded)]
    assert sizes[0] == sizes[1]


def test_a_vae_that_diffusers_does_not_read_is_told_and_the_bases_is_used(tmp_path: Path) -> None:
    build, layout, _ = FAMILIES["qwen-image"]
    folder = tiny_models.save_pipeline(build, tmp_path / "folder")
    tensors = layouts.prefixed(layout, layouts.COMFY)(single_files.load_part(folder, "transformer"))
    wan = {"decoder.middle.0.residual.0.gamma": next(iter(tensors.values()))}
    tensors |= layouts.prefixed(dict, "vae.")(wan)
    loaded = run(single_files.save(tensors, tmp_path / "qwen.safetensors"), base=folder)
    assert np.array_equal(run(folder).image(), loaded.image())
    assert loaded.notices.endswith(" diffusers does not read the file's vae.")
    alone = single_files.save(wan, tmp_path / "vae.safetensors")
    error = refusal(lambda: run(folder, vae=alone))
    assert error.message.endswith(
        "is in a layout of which diffusers makes no AutoencoderKLQwenImage."
    )


def test_relatives_with_the_same_pipeline_are_told_by_their_configs(tmp_path: Path) -> None:
    folder = tiny_models.save_pipeline(tiny_checkpoints.sdxl, tmp_path / "sdxl")
    assert family_bases.family_of_folder(folder) == "sdxl"
    tiny_models.edit_json(
        folder / "model_index.json",
        scheduler=["diffusers", "EDMDPMSolverMultistepScheduler"],
    )
    assert family_bases.family_of_folder(folder) == "playground-v2.5"


def _closed_picture(model: Path, base: Path | None = None) -> NDArray[np.int64]:
    """The picture of a model whose gigabytes are given back."""
    asked = run(model, base=base) if base else run(model)
    try:
        return asked.image()
    finally:
        asked.backend.close()


@pytest.mark.full
def test_flux_in_its_own_layout_at_its_own_width(tmp_path: Path) -> None:
    folder = tiny_models.save("flux-3072", tmp_path / "flux")
    whole = _closed_picture(folder)
    own = single_files.flux_1(single_files.load_part(folder, "transformer"))
    tensors = _all_in_one(folder, own, FLUX_ENCODERS)
    file = single_files.save(tensors, tmp_path / "flux.safetensors")
    del tensors
    assert read_checkpoint(file).family == "flux-dev"
    configs = _without_weights(folder, tmp_path / "bare", *FLUX_ENCODERS, "transformer", "vae")
    assert np.array_equal(whole, _closed_picture(file, configs))
    file = single_files.save_gguf(own, tmp_path / "alone.gguf", lambda name: "blocks" in name)
    del own
    assert np.abs(whole - _closed_picture(file, folder)).mean() < 8


WIDE: dict[str, tuple[Callable[[], LibraryObject], Layout]] = {
    "chroma": (tiny_checkpoints.chroma, layouts.chroma),
    "lumina2": (tiny_checkpoints.lumina2, layouts.lumina_2),
}


@pytest.mark.full
@pytest.mark.parametrize("name", WIDE)
def test_families_of_fixed_width_are_read_in_their_own_layout(name: str, tmp_path: Path) -> None:
    build, layout = WIDE[name]
    folder = tiny_models.save_pipeline(build, tmp_path / "folder")
    whole = _closed_picture(folder)
    own = layout(single_files.load_part(folder, "transformer"))
    for prefix in ("", layouts.COMFY):
        tensors = layouts.prefixed(dict, prefix)(own)
        file = single_files.save(tensors, tmp_path / f"{name}.safetensors")
        assert read_checkpoint(file).family == name
        assert np.array_equal(whole, _closed_picture(file, folder))


def test_the_command_makes_the_same_picture_and_tells_what_the_base_brings(
    t2i: T2I, tmp_path: Path
) -> None:
    from PIL import Image

    build, layout, _ = FAMILIES["z-image"]
    folder = tiny_models.save_pipeline(build, tmp_path / "folder")
    tensors = layouts.prefixed(layout, layouts.COMFY)(single_files.load_part(folder, "transformer"))
    file = single_files.save(tensors, tmp_path / "z.safetensors")
    picture = tmp_path / "picture.png"
    options = ("--size", "64", "--steps", "2", "-s", "1", "--device", "cpu")
    done = t2i(
        *("generate", "a red star", "-m", str(file), "--base", str(folder)),
        *(*options, "-o", str(picture)),
    )
    assert done.returncode == 0, done.stderr
    assert "Read from z.safetensors: transformer; from folder: " in done.stderr
    # Another process may add up in another order of threads.
    away = np.abs(run(folder).image() - np.array(Image.open(picture)).astype(int))
    assert away.max() <= 2  # noqa: PLR2004 - of 255


def test_a_t5_of_the_width_of_a_clip_is_told_as_a_t5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_check, "_width", lambda _: 768)
    tensors = {"shared.weight": ((100, 768), "F32"), "encoder.block.0.x": ((1,), "F32")}
    file: Any = SimpleNamespace(path="t5.safetensors", tensors=tensors)
    clip: Any = SimpleNamespace(cls="CLIPTextModel")
    with pytest.raises(InputError, match="a T5 of width 768, and the model has CLIPTextModel of"):
        part_check.encoder_in_file(file, [clip])
