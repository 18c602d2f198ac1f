"""Loads a LoRA into a pipeline, and accounts for every key of its file.

diffusers renames the layers of other programs, and only logs what it leaves out. So its own
renaming is run beforehand with a mark in place of each tensor: a key whose mark does not come out
would be lost. Afterwards each tensor that came out must be found in the networks.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from t2i_cli.backends.local.device import is_out_of_memory
from t2i_cli.backends.local.lora_forms import LoraTensors, kohya_tensors, scaled_tensors
from t2i_cli.backends.local.lycoris_loading import lycoris_tensors
from t2i_cli.errors import ModelError, OutOfMemoryError, T2IError, error_reason
from t2i_cli.files.input_files import read_input
from t2i_cli.files.state_files import parse_json
from t2i_cli.models import adapter_fit, libraries, safetensors_header
from t2i_cli.models.adapter_file import AdapterFile, keys_text
from t2i_cli.models.lazy_imports import defer_imports
from t2i_cli.models.libraries import LibraryObject

_MAX_CONFIG = 2**20
_NETWORKS = ("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2")
_LOADS_LOKR = ("Flux2", "ZImage")
"""Beginnings of the names of pipelines for which diffusers loads LoKr itself, in less memory."""
_PEFT = "base_model.model."
_END_NAMES = {
    f"{start}.{end}.weight": f"lora_{letter}.weight"
    for start in ("lora", "lora_linear_layer")
    for end, letter in (("down", "A"), ("up", "B"))
} | {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
"""Names of the two factors, as PEFT has them."""


def load_lora(pipe: LibraryObject, found: AdapterFile, name: str, model: str) -> None:
    """Load a LoRA under a name, with nothing of it left out. Raises T2IError; then it is gone."""
    try:
        with libraries.suppress_warnings(), defer_imports(), _quiet_diffusers():
            tensors = _own_tensors(pipe, found, model)
            converted = _check_conversion(pipe, found, tensors, model)
            if tensors is not None:
                pipe.load_lora_weights(tensors, adapter_name=name)
            else:
                pipe.load_lora_weights(
                    str(found.path),
                    weight_name=found.path.name,
                    adapter_name=name,
                    local_files_only=True,
                    use_safetensors=True,
                )
            _check_loaded(pipe, found, name, converted, model)
    except Exception as error:
        _forget(pipe, name)
        if isinstance(error, T2IError):
            raise
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"Memory ran out while {found.path} was loaded.", hint="Use fewer LoRAs at once."
            ) from error
        # diffusers and peft raise ValueError, RuntimeError, KeyError and others for what they lack.
        raise ModelError(
            f"{found.path} cannot be loaded into {model}: {error_reason(error)}",
            hint="It may be for another model, or of a kind that diffusers does not load.",
        ) from error


def loaded_parts(pipe: LibraryObject, name: str) -> list[str]:
    """The names of the networks that have layers of a LoRA."""
    return [part for part, network in _networks(pipe).items() if _has_layers(network, name)]


def unload_loras(pipe: LibraryObject) -> None:
    """Give each network back the layers that it was loaded with."""
    if hasattr(pipe, "unload_lora_weights"):
        with libraries.suppress_warnings():
            pipe.unload_lora_weights()


def _networks(pipe: LibraryObject) -> dict[str, LibraryObject]:
    found = {name: getattr(pipe, name, None) for name in _NETWORKS}
    return {name: network for name, network in found.items() if network is not None}


def _has_layers(network: LibraryObject, name: str) -> bool:
    return any(name in _adapter_names(module) for module in network.modules())


def _adapter_names(module: LibraryObject) -> set[str]:
    """The names of the adapters that a layer holds weights of."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(module, BaseTunerLayer):
        return set()
    return {
        key for layer in module.adapter_layer_names for key in getattr(module, layer, {}).keys()
    }


def _own_tensors(pipe: LibraryObject, found: AdapterFile, model: str) -> LoraTensors | None:
    """The tensors of a file that diffusers does not read as it is, in a form that it does."""
    if found.has_peft_prefix or found.has_mixed_names:
        return _renamed_tensors(pipe, found)
    if found.has_flux_names and type(pipe).__name__.startswith("Flux"):
        return kohya_tensors(found)
    loads_lokr = type(pipe).__name__.startswith(_LOADS_LOKR)
    if found.kinds & ({"loha", "mid", "diff"} if loads_lokr else {"loha", "mid", "diff", "lokr"}):

        def rename(tensors: LoraTensors) -> LoraTensors:
            _check_conversion(pipe, found, tensors, model)
            return _convert(pipe, tensors)

        return lycoris_tensors(found, _networks(pipe), rename)
    return scaled_tensors(found) if hasattr(pipe, "unet") else None


def _renamed_tensors(pipe: LibraryObject, found: AdapterFile) -> LoraTensors:
    """The tensors in diffusers' names of the layers.

    It does not look for PEFT's prefix, and takes the first key's kind of name for that of all.
    """
    from safetensors.torch import load_file

    if "lora_adapter_metadata" in found.metadata:
        raise ModelError(f"{found.path} names its layers in two ways, and diffusers reads one.")
    tensors: LoraTensors = load_file(str(found.path))
    own = {
        part: {adapter_fit.plain_layer_name(name) for name, _ in network.named_modules()}
        for part, network in _networks(pipe).items()
    }
    scale = _peft_scale(found)
    renamed: LoraTensors = {}
    for layer_name, layer in found.layers.items():
        inner = layer_name.removeprefix(_PEFT)
        prefixes = [part for part in own if inner.startswith(f"{part}.")]
        inner = inner.removeprefix(f"{prefixes[0]}.") if prefixes else inner
        plain = adapter_fit.plain_layer_name(inner)
        part = next((each for each in prefixes or own if plain in own[each]), None)
        if part is None:
            raise ModelError(f"{found.path} has {keys_text(layer.keys)} for a layer that is none.")
        for key in layer.keys:
            end = _END_NAMES.get(end := key[len(layer_name) + 1 :].replace(".default.", "."), end)
            tensor = tensors[key]
            factor = scale(tensor.shape[1]) if end == "lora_B.weight" else 1.0
            renamed[f"{part}.{inner}.{end}"] = tensor if factor == 1 else tensor * factor
    return renamed


def _peft_scale(found: AdapterFile) -> Callable[[int], float]:
    """The factor of a layer by its rank, of the PEFT config beside the file; 1 without one."""
    file = found.path.parent / "adapter_config.json"
    if not file.is_file():
        return lambda _: 1.0
    try:
        config = parse_json(read_input(file, _MAX_CONFIG))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}, which belongs to {found.path}, is damaged.") from error
    values = config if isinstance(config, dict) else {}
    alpha = values.get("lora_alpha")
    if values.get("alpha_pattern") or values.get("use_dora"):
        raise ModelError(f"{found.path} has a PEFT config of a kind that diffusers does not load.")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        return lambda _: 1.0
    power = 0.5 if values.get("use_rslora") is True else 1.0
    return lambda rank: alpha / rank**power


def _check_conversion(
    pipe: LibraryObject, found: AdapterFile, tensors: LoraTensors | None, model: str
) -> LoraTensors:
    """The tensors by the names that diffusers gives them. Raises ModelError if it loses one."""
    import torch

    if tensors is None:
        header = safetensors_header.read_header(found.path).tensors
        shapes = {key: each.shape for key, each in header.items()}
    else:
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    marks: dict[str, float] = {}
    marked: LoraTensors = {}
    for number, (key, shape) in enumerate(shapes.items(), 1):
        if key.endswith("alpha"):
            # As great as the rank, so that no tensor is scaled.
            marked[key] = torch.full(shape, float(_rank_beside(key, shapes)))
        else:
            marks[key] = float(number)
            marked[key] = torch.full((1,) * len(shape), float(number)).expand(shape)
    converted = _convert(pipe, marked)
    kept: set[float] = set()
    for tensor in converted.values():
        kept.update(tensor.unique().tolist())
    lost = [key for key, mark in marks.items() if mark not in kept]
    if lost:
        raise ModelError(
            f"{found.path} cannot be loaded whole into {model}: diffusers leaves out "
            f"{keys_text(lost)}.",
            hint="An image without them would not be the one that the LoRA was made for.",
        )
    return converted


def _check_loaded(
    pipe: LibraryObject, found: AdapterFile, name: str, converted: LoraTensors, model: str
) -> None:
    """Raise ModelError if a tensor is in no network, or has no values there."""
    loaded: set[str] = set()
    for part, network in _networks(pipe).items():
        for key, weight in network.named_parameters():
            if f".{name}" in key and not weight.is_meta:
                loaded.add(f"{part}.{key.replace(f'.{name}', '', 1)}")
    missing = [key for key in _peft_names(pipe, converted) if key not in loaded]
    if missing or not loaded:
        raise ModelError(
            f"{found.path} cannot be loaded whole into {model}: {keys_text(missing or converted)} "
            "found no layer."
        )


def _peft_names(pipe: LibraryObject, converted: LoraTensors) -> list[str]:
    """The names that tensors have in the networks, after that of their part."""
    from diffusers.utils.state_dict_utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    names: list[str] = []
    networks = _networks(pipe)
    by_part: dict[str, LoraTensors] = {}
    for key, tensor in converted.items():
        part, _, inner = key.partition(".")
        by_part.setdefault(part, {})[inner] = tensor
    for part, tensors in by_part.items():
        if part.startswith("text_encoder"):
            tensors = convert_state_dict_to_peft(convert_state_dict_to_diffusers(tensors))
            if not hasattr(networks.get(part), "text_model"):
                tensors = {key.removeprefix("text_model."): each for key, each in tensors.items()}
        elif not any("lora_A" in key or ".lokr_" in key for key in list(tensors)[:1]):
            tensors = convert_unet_state_dict_to_peft(tensors)
        names += [f"{part}.{key}" for key in tensors if not key.endswith("alpha")]
    return names


def _forget(pipe: LibraryObject, name: str) -> None:
    """Remove what of a LoRA was loaded before it failed."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for network in _networks(pipe).values():
        for module in network.modules():
            if isinstance(module, BaseTunerLayer) and name in _adapter_names(module):
                module.delete_adapter(name)
        configs = getattr(network, "peft_config", None)
        if isinstance(configs, dict):
            configs.pop(name, None)


def _rank_beside(key: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    base = key.removesuffix("alpha")
    for end in ("lora_down.weight", "lora_A.weight", "lora.down.weight", "lokr_w1_b", "lokr_w2_b"):
        if shape := shapes.get(base + end):
            return shape[0]
    return 1


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Without the lines that diffusers logs of keys: what is lost is told by t2i."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _convert(pipe: LibraryObject, tensors: LoraTensors) -> LoraTensors:
    """What diffusers makes of a LoRA's tensors, by its own names of the layers."""
    from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin

    arguments = {}
    if isinstance(pipe, StableDiffusionXLLoraLoaderMixin):
        arguments["unet_config"] = getattr(pipe, "unet").config  # noqa: B009 - of the mixin
    found = pipe.lora_state_dict(dict(tensors), **arguments)
    return dict(found[0] if isinstance(found, tuple) else found)
