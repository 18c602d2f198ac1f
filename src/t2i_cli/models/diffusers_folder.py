"""Read a diffusers folder's JSON files: the model's components and their configs."""

import os
import re
from pathlib import Path
from typing import Any, cast

from t2i_cli.errors import ModelError, os_reason
from t2i_cli.files import input_files, model_parts, state_files
from t2i_cli.files.state_files import is_count

JsonConfig = dict[str, Any]
_MAX_CONFIG_BYTES = 2**26
"""Bytes of a JSON file of a model; indices of many shards take a few million."""
_MAX_SIZE = 2**20
_MAX_BLOCKS = 64
DENOISERS = ("transformer", "unet", "decoder")
_UPCASTS = re.compile("StableDiffusionXL|Kolors|AuraFlow|Amused")
"""diffusers' pipelines that cast their decoder to float32 if its config has `force_upcast`."""


def _is_size(value: object) -> bool:
    return is_count(value, _MAX_SIZE)


def _is_list_of_sizes(value: object) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= _MAX_BLOCKS
        and all(isinstance(each, bool) or _is_size(each) for each in value)
    )


def _is_size_or_list(value: object) -> bool:
    return _is_size(value) or _is_list_of_sizes(value)


def _is_size_or_pair(value: object) -> bool:
    return _is_size(value) or (_is_list_of_sizes(value) and len(cast("list[int]", value)) == 2)


_SIZES = {
    "sample_size": _is_size_or_pair,
    "patch_size": _is_size_or_list,
    "all_patch_size": _is_size_or_list,
    "num_attention_heads": _is_size_or_list,
    "attention_head_dim": _is_size_or_list,
    "block_out_channels": _is_size_or_list,  # amused has a number
    "encoder_block_out_channels": _is_list_of_sizes,
    "decoder_block_out_channels": _is_list_of_sizes,
    "temperal_downsample": _is_list_of_sizes,
    "spatial_compression_ratio": _is_size,
}
"""The values of configs that t2i computes with."""


def read_model_index(folder: Path) -> JsonConfig:
    """Read the folder's model_index.json; raises ModelError if it is not a diffusers folder."""
    file = folder / "model_index.json"
    try:
        return read_json_object(file)
    except FileNotFoundError:
        if os.access(folder, os.R_OK) and not os.listdir(folder):
            raise ModelError(f"The model folder {folder} is empty.") from None
        if found := model_parts.other_content(_root_names(folder), _root_config(folder)):
            raise ModelError(f"The folder {folder} {found[0]}.", hint=found[1]) from None
        raise ModelError(
            f"The folder {folder} has no model_index.json, so it is not a diffusers model.",
            hint=_model_inside(folder)
            or "Name the folder that holds model_index.json, or a single file of weights.",
        ) from None


def _model_inside(folder: Path) -> str | None:
    """A hint at the models in a folder's own folders, `None` if there are none."""
    inside = [each for each in folder_entries(folder) if os.path.isfile(each / "model_index.json")]
    if not inside:
        return None
    more = f"; there are {len(inside)} in it" if len(inside) > 1 else ""
    return f"Name the model in it: {sorted(inside)[0]}{more}."


def _root_names(folder: Path) -> list[str]:
    return [path.name for path in folder_entries(folder) if os.path.isfile(path)]


def _root_config(folder: Path) -> JsonConfig:
    try:
        return read_json_object(folder / "config.json")
    except (FileNotFoundError, ModelError):
        return {}


def pipeline_class_path(folder: Path) -> list[str]:
    """The pipeline's class, after its module if that is the model's own. Raises ModelError."""
    class_name = read_model_index(folder).get("_class_name")
    path = class_name if isinstance(class_name, list) and len(class_name) == 2 else [class_name]
    names = [name for name in path if isinstance(name, str) and name.isidentifier()]
    if len(names) < len(path):
        raise ModelError(f"{folder / 'model_index.json'} names no pipeline class.")
    return names


def folder_entries(folder: Path) -> list[Path]:
    """What lies in a folder of a model; empty if it is no folder. Raises ModelError."""
    try:
        return list(folder.iterdir()) if os.path.isdir(folder) else []
    except OSError as error:
        raise ModelError(f"Cannot read {folder}: {os_reason(error)}.") from error


def component_config(folder: Path, name: str) -> JsonConfig:
    """A component's config.json (or scheduler_config.json); empty if there is none.

    Raises ModelError if it is damaged, or if a size in it is none.
    """
    file = folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
    try:
        config = read_json_object(file)
    except FileNotFoundError:
        return {}
    for key, is_valid in _SIZES.items():
        if key == "block_out_channels" and name not in DENOISERS:
            is_valid = _is_list_of_sizes
        if config.get(key) is not None and not is_valid(config[key]):
            raise ModelError(f"{file} is damaged: its {key} cannot be {str(config[key])[:40]}.")
    return config


def largest_size(config: JsonConfig, key: str, default: int) -> int:
    """A size of a config, the largest of a list; `default` if there is none, or 0."""
    value = config.get(key)
    return max(value, default=0) or default if isinstance(value, list) else value or default


def denoiser_config(folder: Path) -> tuple[str, JsonConfig]:
    """The name and config of the denoiser (transformer, UNet or decoder)."""
    name = next((n for n in DENOISERS if os.path.isfile(folder / n / "config.json")), "unet")
    return name, component_config(folder, name)


def float32_decoder(folder: Path, dtype: str) -> str | None:
    """The component that decodes in float32 although the model runs in `dtype`, or `None`.

    Some pipelines cast their decoder during a run, because it overflows in float16; Bria's casts it
    when it is constructed. A cast under offload hooks would mix precisions, so the component is
    loaded in float32.
    """
    class_name = read_model_index(folder).get("_class_name")
    pipeline = str(class_name[-1] if isinstance(class_name, list) and class_name else class_name)
    name = "vqvae" if pipeline.startswith("Amused") else "vae"
    config = component_config(folder, name)
    if not config:
        return None
    if pipeline == "BriaPipeline":
        cast = dtype != "float32" and config.get("shift_factor") is None
    else:
        # Without the key, the default of the class applies.
        forced = config.get("force_upcast", config.get("_class_name") == "AutoencoderKL")
        cast = dtype == "float16" and bool(_UPCASTS.search(pipeline)) and bool(forced)
    return name if cast else None


def vae_scale_factor(folder: Path) -> int:
    """Image pixels per latent pixel along one side, computed as the pipelines' constructors do.

    1 for a pipeline without a VAE, which works on pixels.
    """
    config = component_config(folder, "vae") or component_config(folder, "movq")
    if ratio := config.get("spatial_compression_ratio"):
        return int(ratio)
    if temporal := config.get("temperal_downsample"):
        return int(2 ** len(temporal))
    for key in ("block_out_channels", "encoder_block_out_channels"):
        if channels := config.get(key):
            return int(2 ** (len(channels) - 1))
    return 8 if config else 1


def read_json_object(file: Path) -> JsonConfig:
    """The JSON object in a model's file; raises ModelError, and FileNotFoundError if missing."""
    try:
        # Files of the Hub's cache are links to their content.
        value = state_files.parse_json(input_files.read_input(file, _MAX_CONFIG_BYTES))
    except FileNotFoundError:
        raise
    except ValueError as error:
        raise ModelError(f"{file} is damaged: it is not JSON.") from error
    except OSError as error:
        raise ModelError(f"Cannot read {file}: {os_reason(error)}.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} is damaged: it holds no JSON object.")
    return value
