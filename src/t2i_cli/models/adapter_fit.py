"""Whether a LoRA or an embedding fits a model, by names and shapes in the headers of both.

Nothing is loaded. Of layers in the names of other programs (ldm's, FLUX's own), which diffusers
renames, the family is compared here; `backends/local/lora_loading.py` accounts for each key.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from t2i_cli.errors import ModelError
from t2i_cli.models import (
    class_facts,
    diffusers_folder,
    safetensors_header,
    saved_quantization,
    sources,
)
from t2i_cli.models.adapter_file import (
    MAX_NAMED,
    AdapterFile,
    AdapterLayer,
    keys_text,
)
from t2i_cli.models.lycoris_shapes import Shape, lora_size

_ENCODERS = (
    (re.compile(r"(?:lora_te1?_|text_encoder\.)"), "text_encoder"),
    (re.compile(r"(?:lora_te2_|text_encoder_2\.)"), "text_encoder_2"),
    (re.compile(r"(?:lora_te3_|text_encoder_3\.)"), "text_encoder_3"),
)
"""Beginnings of the names of text encoders' layers; all other layers are the denoiser's."""
_DENOISER_PREFIX = re.compile(
    r"(?:lora_unet_|lora_transformer_|lycoris_|unet\.|transformer\.|base_model\.model\.(?:unet\.|"
    r"transformer\.)?|(?:model\.)?diffusion_model\.)"
)
_RENAMED = re.compile(
    r"(?:^|_)(?:input_blocks|middle_block|output_blocks|double_blocks|single_blocks|joint_blocks"
    r"|context_refiner|noise_refiner)_\d|(?:^|_)(?:middle_block|final_layer)_"
    r"|(?:^|(?<!down)(?<!up)(?<!transformer)(?<!encoder)_)(?:layers|blocks)_\d"
)
"""Layers in the names of other programs, which diffusers renames when it loads a LoRA.

Not `down_blocks`, `up_blocks`, `transformer_blocks` and `encoder_layers`, which are its own.
"""


_TEXT_WIDTHS = {768: "sd15", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""Families of UNets by the width of the texts that their cross-attention reads."""
_TRANSFORMERS = (
    ("Flux2", "flux2"),
    ("Flux", "flux"),
    ("Chroma", "flux"),
    ("SD3", "sd3"),
    ("QwenImage", "qwen-image"),
    ("ZImage", "z-image"),
    ("Lumina2", "lumina2"),
    ("AuraFlow", "auraflow"),
    ("HiDream", "hidream"),
    ("Sana", "sana"),
    ("PixArt", "pixart"),
)
"""Families of transformers by the beginnings of their classes' names."""


@dataclass(frozen=True)
class _Comparison:
    """The layers of a LoRA that a model has, has in another shape, and does not have."""

    fitting: list[str]
    misshaped: list[str]
    missing: list[str]


def check_lora_fit(found: AdapterFile, folder: Path, model: str) -> None:
    """Raise ModelError if a LoRA is of another family, or has layers that the model lacks."""
    cls = sources.used_class_path(folder)[-1]
    if class_facts.has_method(cls, "load_lora_weights") is False:
        raise ModelError(f"{model} takes no LoRA: diffusers' {cls} cannot load one.")
    _check_kinds(found)
    layers = _model_layers(str(folder))
    compared = _compare(found.layers, layers)
    if layers and not (compared.misshaped or compared.missing):
        return  # whatever family the names of its layers are common in
    theirs, own = found.family, model_family(folder)
    fits = theirs == own or (own == "flux2" and str(theirs).startswith("flux2"))
    if theirs and own and not fits:
        raise ModelError(
            f"{found.path} is a LoRA for {theirs}, and {model} is of another family ({own}).",
            hint="A LoRA works with the models of its own family.",
        )
    if not layers:
        return  # its weights are still to be downloaded
    if compared.misshaped:
        raise ModelError(
            f"{found.path} was made for another model than {model}: {len(compared.misshaped):,} of "
            f"its {len(found.layers):,} layers have another shape "
            f"({_listed(compared.misshaped)})."
        )
    renamed = all(_RENAMED.search(_plain(name)) for name in compared.missing)
    if compared.missing and not renamed:
        raise ModelError(
            f"{found.path} does not fit {model}: it has {keys_text(_keys(found, compared.missing))}"
            f" for layers that {model} does not have, {len(compared.missing):,} of "
            f"{len(found.layers):,}."
        )


def model_family(folder: Path) -> str | None:
    """The family of a model, by its denoiser's class and config, `None` if none is known."""
    name, config = diffusers_folder.denoiser_config(folder)
    cls = next((part.cls for part in sources.list_parts(folder) if part.name == name), "")
    if cls == "UNet2DConditionModel":
        width = config.get("cross_attention_dim")
        pipeline = sources.used_class_path(folder)[-1]
        other = "sdxl" if pipeline.startswith("StableDiffusionXL") else "a UNet of its own"
        return _TEXT_WIDTHS.get(width if isinstance(width, int) else 0, other)
    return next((family for start, family in _TRANSFORMERS if cls.startswith(start)), None)


def check_embedding_fit(found: AdapterFile, folder: Path, model: str) -> None:
    """Raise ModelError if no text encoder of the model takes the embedding's vectors."""
    cls = sources.used_class_path(folder)[-1]
    if class_facts.has_method(cls, "load_textual_inversion") is False:
        raise ModelError(f"{model} takes no embedding: diffusers' {cls} cannot load one.")
    widths = encoder_widths(folder)
    taken = {embedding_encoder(name, s[-1], widths) for name, s in found.vectors.items()}
    wrong = [
        f"{shape[-1]}"
        for name, shape in found.vectors.items()
        if embedding_encoder(name, shape[-1], widths) is None
    ]
    if wrong:
        takes = " and ".join(str(width) for width in widths.values()) or "none"
        raise ModelError(
            f"{found.path} does not fit {model}: its vectors have {', '.join(wrong)} numbers, and "
            f"the text encoders of {model} take {takes}."
        )
    if without := sorted(widths.keys() - taken):
        raise ModelError(
            f"{found.path} does not fit {model}: it has no vectors for its {without[0]}.",
            hint="It may be for a smaller model of the same family.",
        )


def encoder_widths(folder: Path) -> dict[str, int]:
    """The width of the CLIP text encoders' token embeddings, by the names of the parts."""
    found = {}
    for part in sources.list_parts(folder):
        if part.name.startswith("text_encoder") and part.cls.startswith("CLIPText"):
            width = diffusers_folder.component_config(folder, part.name).get("hidden_size")
            if isinstance(width, int):
                found[part.name] = width
    return found


def embedding_encoder(name: str, width: int, widths: Mapping[str, int]) -> str | None:
    """The text encoder that a tensor of an embedding is for, or `None` if there is none."""
    wanted = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}.get(name)
    fitting = [part for part, each in widths.items() if each == width]
    if wanted is not None:
        return wanted if wanted in fitting else None
    return fitting[0] if fitting else None


def _check_kinds(found: AdapterFile) -> None:
    if "oft" in found.kinds:
        raise ModelError(
            f"{found.path} is an OFT of LyCORIS, which diffusers does not load: it turns a model's "
            "own weights and adds nothing to them.",
            hint="LoRA, LoCon, LoHa and LoKr are loaded.",
        )


def _compare(
    layers: Mapping[str, AdapterLayer], model: Mapping[str, Mapping[str, Shape]]
) -> _Comparison:
    compared = _Comparison([], [], [])
    for name, layer in layers.items():
        part = _part(name)
        candidates = [part] if part else [p for p in model if not p.startswith("text_encoder")]
        if part is None and name.startswith("base_model."):
            candidates = list(model)
        plain = _plain(name)
        shapes = [model[each][plain] for each in candidates if plain in model.get(each, {})]
        if not shapes:
            compared.missing.append(name)
        elif any(_fits(layer.shapes, shape) for shape in shapes):
            compared.fitting.append(name)
        else:
            compared.misshaped.append(name)
    return compared


def _fits(layer: Mapping[str, Shape], weight: Shape) -> bool:
    if len(weight) < 2:  # noqa: PLR2004 - no matrix
        return True
    if size := lora_size(layer):
        return (size.rows, size.columns) == (weight[0], math.prod(weight[1:]))
    if "down" not in layer:
        return True
    return layer["down"][1] == weight[1] and layer["up"][0] == weight[0]


def layer_place(name: str) -> tuple[str | None, str]:
    """The text encoder whose layer it is (`None`: the denoiser's), and its name there."""
    return _part(name), _plain(name)


def _part(name: str) -> str | None:
    """The text encoder whose layer it is, `None` for the denoiser's."""
    return next((part for pattern, part in _ENCODERS if pattern.match(name)), None)


def _plain(name: str) -> str:
    """A layer's name as all programs have it: without prefixes, with underscores."""
    for pattern, _ in _ENCODERS:
        if match := pattern.match(name):
            name = name[match.end() :]
            break
    else:
        if match := _DENOISER_PREFIX.match(name):
            name = name[match.end() :]
    return plain_layer_name(name)


def plain_layer_name(name: str) -> str:
    """The layer's name with underscores, and without what programs add to it or leave out."""
    plain = name.replace(".processor.", ".").replace(".", "_").removeprefix("text_model_")
    return plain + "_0" if plain.endswith("_to_out") else plain


@lru_cache(maxsize=4)
def _model_layers(folder: str) -> dict[str, dict[str, Shape]]:
    """The shapes of the weights of the denoiser and text encoders, by part and layer.

    That of a layer whose weights are packed is empty.

    Empty where the weights are not here.
    """
    found: dict[str, dict[str, Shape]] = {}
    for part in sources.list_parts(Path(folder)):
        if not part.name.startswith(("unet", "transformer", "text_encoder")):
            continue
        try:
            files = part.weight_paths("float32")
            headers = [safetensors_header.read_header(file) for file in files]
        except ModelError:
            return {}
        found[part.name] = {
            plain_layer_name(layer): shape
            for header in headers
            for layer, shape in saved_quantization.layer_shapes(header)
        }
    return found


def _keys(found: AdapterFile, layers: Iterable[str]) -> list[str]:
    return [key for name in layers for key in found.layers[name].keys]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")
