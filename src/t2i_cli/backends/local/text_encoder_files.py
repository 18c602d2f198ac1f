"""Makes text encoders from tensors of single files: checkpoints, GGUF, fp8 with factors.

transformers puts the tensors into its network, by whatever names its versions have given them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.sources import Part

_WRAPPED = "transformer."
"""What ldm and ComfyUI put before the names of transformers."""
_OPEN_CLIP = "model."
_OPEN_CLIP_BLOCK = "model.transformer.resblocks.0.ln_1.weight"
_IDENTITY_OF = "text_encoders.clip_l."
"""The encoder of ComfyUI's files for SD 3 whose pooled text is not projected."""
_PROJECTION = "text_projection.weight"


def make_encoder(
    cls: LibraryObject,
    part: Part,
    tensors: Mapping[str, LibraryObject],
    prefix: str,
    arguments: Mapping[str, Any],
) -> tuple[LibraryObject, list[str]]:
    """A text encoder of tensors from a file, and the weights that they lack.

    The names are those in the file without their `prefix`; `arguments` are for `from_pretrained`.
    """
    config = cls.config_class.from_pretrained(str(part.folder), local_files_only=True)
    return _filled(cls, config, _named(cls, config, tensors, prefix), arguments)


def read_gguf(
    cls: LibraryObject, part: Part, file: Path, arguments: Mapping[str, Any]
) -> tuple[LibraryObject, list[str]]:
    """A text encoder of a GGUF file, whose blocks are computed to whole numbers; what it lacks."""
    from accelerate import init_empty_weights
    from transformers import modeling_gguf_pytorch_utils

    reading: LibraryObject = modeling_gguf_pytorch_utils
    config = cls.config_class.from_pretrained(str(part.folder), local_files_only=True)
    with init_empty_weights():
        empty = cls(config)
    bar = reading.tqdm
    reading.tqdm = lambda tensors, **_: tensors  # its progress bar cannot be turned off
    try:
        found = reading.load_gguf_checkpoint(
            str(file), return_tensors=True, model_to_load=empty, torch_dtype=arguments["dtype"]
        )
    finally:
        reading.tqdm = bar
    return _filled(cls, config, found["tensors"], arguments)


def _filled(
    cls: LibraryObject,
    config: LibraryObject,
    tensors: dict[str, LibraryObject],
    arguments: Mapping[str, Any],
) -> tuple[LibraryObject, list[str]]:
    """The network with the tensors, and the names of weights that are missing."""
    network, told = cls.from_pretrained(
        None, config=config, state_dict=tensors, output_loading_info=True, **arguments
    )
    return network, sorted(told["missing_keys"])


def _named(
    cls: LibraryObject, config: LibraryObject, tensors: Mapping[str, LibraryObject], prefix: str
) -> dict[str, LibraryObject]:
    """The tensors by transformers' names."""
    if _OPEN_CLIP_BLOCK in tensors:
        return _from_open_clip(cls, config, tensors, prefix)
    found = {name.removeprefix(_WRAPPED): tensor for name, tensor in tensors.items()}
    if prefix == _IDENTITY_OF and cls.__name__.endswith("WithProjection"):
        import torch

        found[_PROJECTION] = torch.eye(config.projection_dim)
    return found


def _from_open_clip(
    cls: LibraryObject, config: LibraryObject, tensors: Mapping[str, LibraryObject], prefix: str
) -> dict[str, LibraryObject]:
    """OpenCLIP's tensors, which have query, key and value in one, by transformers' names."""
    from accelerate import init_empty_weights
    from diffusers.loaders import single_file_utils

    functions: LibraryObject = single_file_utils
    with init_empty_weights():
        empty = cls(config)
    whole = {prefix + name: tensor for name, tensor in tensors.items()}
    found: dict[str, LibraryObject] = functions.convert_open_clip_checkpoint(
        empty, whole, prefix=prefix + _OPEN_CLIP
    )
    return found
