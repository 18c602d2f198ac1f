"""Reads a file of LyCORIS as a LoRA in diffusers' names of the layers.

Names of diffusers' own layers are looked up in the networks; those of other programs are renamed by
diffusers, which then finds the two factors that it knows.
"""

from collections.abc import Callable, Iterator, Mapping

from t2i_cli.backends.local.lora_forms import LoraTensors
from t2i_cli.backends.local.lycoris_factors import Factors, lora_factors
from t2i_cli.errors import ModelError
from t2i_cli.models import adapter_fit
from t2i_cli.models.adapter_file import AdapterFile, AdapterLayer, keys_text
from t2i_cli.models.libraries import LibraryObject

_TAKEN = frozenset({"down", "up", "mid", "alpha", "loha", "lokr"})
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_ENDS = {
    "lora.down.weight": "lora.up.weight",
    "lora_linear_layer.down.weight": "lora_linear_layer.up.weight",
    "lora_A.weight": "lora_B.weight",
}
"""How diffusers' renaming ends the names of the two factors."""


def lycoris_tensors(
    found: AdapterFile,
    networks: Mapping[str, LibraryObject],
    rename: Callable[[LoraTensors], LoraTensors],
) -> LoraTensors:
    """The tensors of a LoRA that changes the networks as the file does. Raises ModelError."""
    _check_taken(found)
    modules = {
        part: {
            adapter_fit.plain_layer_name(name): (f"{part}.{name}", module)
            for name, module in network.named_modules()
            if hasattr(module, "weight")
        }
        for part, network in networks.items()
    }
    known: LoraTensors = {}
    foreign: LoraTensors = {}
    for name, factors in _all_factors(found):
        part, plain = adapter_fit.layer_place(name)
        parts = [part] if part else [each for each in modules if not each.startswith("text")]
        place = next((modules[p][plain] for p in parts if plain in modules.get(p, {})), None)
        if place is not None:
            up, down = _shaped(factors, place[1])
            known |= {place[0] + _DOWN: down, place[0] + _UP: up}
        else:
            foreign |= _foreign_tensors(name, factors)
    return known | (_renamed(foreign, networks, rename) if foreign else {})


def _check_taken(found: AdapterFile) -> None:
    """Raise ModelError for what is no change of a matrix, as biases and norms."""
    left = [
        key
        for layer in found.layers.values()
        for key, role in zip(layer.keys, layer.shapes, strict=True)
        if role.partition(":")[0] not in _TAKEN
        and not (role == "diff:diff" and len(layer.shapes[role]) > 1)
    ]
    if left:
        raise ModelError(
            f"{found.path} cannot be loaded whole: its {keys_text(left)} change no matrix of "
            "weights, and diffusers loads nothing else."
        )


def _all_factors(found: AdapterFile) -> Iterator[tuple[str, Factors]]:
    from safetensors import safe_open

    with safe_open(str(found.path), framework="pt") as file:
        for name, layer in found.layers.items():
            yield name, _layer_factors(layer, file.get_tensor)


def _layer_factors(layer: AdapterLayer, read: Callable[[str], LibraryObject]) -> Factors:
    tensors = {role: read(key) for role, key in zip(layer.shapes, layer.keys, strict=True)}
    if not ("down" in tensors and "mid" not in tensors):
        return lora_factors(tensors)
    up, down = tensors["up"].float(), tensors["down"].float()
    if "alpha" in tensors:
        up = up * (float(tensors["alpha"]) / down.shape[0])
    return up.flatten(1), down.flatten(1)


def _shaped(factors: Factors, module: LibraryObject) -> Factors:
    """The factors as those of a layer of the module's kind."""
    up, down = factors
    kernel = tuple(module.weight.shape[2:]) if type(module).__name__ == "Conv2d" else ()
    if not kernel:
        return up.contiguous(), down.contiguous()
    rank, places = down.shape[0], kernel[0] * kernel[1]
    down = down.reshape(rank, down.shape[1] // places, *kernel)
    return up.reshape(*up.shape, 1, 1).contiguous(), down.contiguous()


def _foreign_tensors(name: str, factors: Factors) -> LoraTensors:
    """The factors in the names of a LoRA of the same program; alpha is the rank, a factor of 1."""
    import torch

    up, down = (each.contiguous() for each in factors)
    if "." in name:
        return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    alpha = torch.tensor(float(down.shape[0]))
    return {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": alpha,
    }


def _renamed(
    foreign: LoraTensors,
    networks: Mapping[str, LibraryObject],
    rename: Callable[[LoraTensors], LoraTensors],
) -> LoraTensors:
    """The tensors by diffusers' names, with the kernels of the layers that they belong to."""
    found = rename(foreign)
    shaped: LoraTensors = {}
    for key, down in found.items():
        end = next((end for end in _ENDS if key.endswith(f".{end}")), None)
        if end is None:
            continue
        layer = key.removesuffix(f".{end}")
        part, _, inner = layer.partition(".")
        other = f"{layer}.{_ENDS[end]}"
        module = dict(networks[part].named_modules()).get(inner) if part in networks else None
        up, down = _shaped((found[other], down), module) if module else (found[other], down)
        shaped |= {layer + _DOWN: down, layer + _UP: up}
    return shaped
