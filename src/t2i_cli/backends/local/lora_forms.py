"""Forms of a LoRA's tensors that diffusers reads right, where it misreads those of the file."""

from t2i_cli.models.adapter_file import AdapterFile
from t2i_cli.models.libraries import LibraryObject

LoraTensors = dict[str, LibraryObject]


def scaled_tensors(found: AdapterFile) -> LoraTensors | None:
    """The tensors with each layer's alpha in its second factor, `None` if there is one for all.

    Of several, diffusers gives some layers of a UNet that of others, and so those without any.
    """
    from safetensors.torch import load_file

    layers = [
        (dict(zip(layer.shapes, layer.keys, strict=True)), layer.shapes["down"][0])
        for layer in found.layers.values()
        if "down" in layer.shapes
    ]
    if not any("alpha" in keys for keys, _ in layers):
        return None
    tensors: LoraTensors = load_file(str(found.path))
    if len({float(tensors[k["alpha"]]) if "alpha" in k else None for k, _ in layers}) == 1:
        return None
    for keys, rank in layers:
        if "alpha" in keys:
            alpha = float(tensors.pop(keys["alpha"]))
            tensors[keys["up"]] = tensors[keys["up"]].float() * (alpha / rank)
    return tensors


def kohya_tensors(found: AdapterFile) -> LoraTensors:
    """The tensors with kohya's ends of names, by which diffusers knows FLUX.1's own layers."""
    import torch
    from safetensors.torch import load_file

    ends = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
    tensors: LoraTensors = load_file(str(found.path))
    renamed: LoraTensors = {}
    for name, layer in found.layers.items():
        for key in layer.keys:
            end = key[len(name) + 1 :].replace(".default.", ".")
            renamed[f"{name}.{ends.get(end, end)}"] = tensors[key]
        renamed.setdefault(f"{name}.alpha", torch.tensor(float(layer.shapes["down"][0])))
    return renamed
