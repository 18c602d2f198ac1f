"""Loads the parts of a pipeline that lie in single files, by diffusers' own conversions.

Each file is opened once for all its parts; its tensors are mapped, not read, until they are used.
"""

import re
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_cli.backends.local import part_origins, quantization, scaled_weights, text_encoder_files
from t2i_cli.backends.local.device import is_out_of_memory
from t2i_cli.errors import ModelError, error_reason
from t2i_cli.events import Notice, OnEvent
from t2i_cli.models import component_check, single_file_parts, sources
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.models.sources import Part

if TYPE_CHECKING:
    from t2i_cli.backends.local.load_target import LoadTarget

_MAX_NAMED = 3
"""Tensors that an error names; there may be hundreds."""
_HINT = "The file may be damaged, or of another family; --base names another model."
_READ_APART = ("text_encoder",)
"""Parts whose files hold tensors that are left out on purpose: layers past the one that is used."""
_LEFT_OUT = re.compile(
    r"norm_final\.weight|y_embedder\.y_embedding|pos_embed|pos_embedder\..+|accum_.+|.*_extra_state"
)
"""Tensors of the families' own files that nothing of diffusers' networks needs."""
_LDM = "model.diffusion_model."
_LDM_ENTRY = "input_blocks.0.0.weight"
_TOLD_ERRORS = (ValueError, KeyError, IndexError, RuntimeError, AttributeError, TypeError)
"""What conversions raise for tensors of other families, or none."""


def load_parts(
    target: "LoadTarget", dtype: LibraryObject, on_event: OnEvent
) -> dict[str, LibraryObject]:
    """The networks of the parts that lie in single files, by part.

    `dtype` is torch's, or a mapping of them by part with a `default`, as `from_pretrained` takes.

    Raises ModelError for tensors that are missing, or of other shapes than the configs say.
    """
    import torch

    if origins := part_origins.describe_origins(target):
        on_event(Notice(message=origins))
    files: dict[Path, dict[str, LibraryObject]] = {}
    loaded = {}
    for part in sources.single_file_parts(target.folder):
        if part.file is None:
            continue
        path = part.file.path
        chosen = dtype.get(part.name, dtype["default"]) if isinstance(dtype, dict) else dtype
        if part.library != "diffusers" and single_file_parts.is_gguf(path):
            loaded[part.name] = _load_encoder(part, {}, target, chosen)
            continue
        if path not in files:
            files = {path: _read_tensors(path, getattr(torch, target.dtype))}
        network = _load_part(part, files[path], target, chosen)
        _tell_unused(part, network, on_event)
        loaded[part.name] = network
    return loaded


def _read_tensors(path: Path, dtype: LibraryObject) -> dict[str, LibraryObject]:
    from diffusers.loaders.single_file_utils import load_single_file_checkpoint

    tensors: dict[str, LibraryObject] = load_single_file_checkpoint(
        str(path), local_files_only=True
    )
    return scaled_weights.multiply_scales(tensors, dtype, path)


def _load_part(
    part: Part, tensors: dict[str, LibraryObject], target: "LoadTarget", dtype: LibraryObject
) -> LibraryObject:
    if part.library != "diffusers":
        return _load_encoder(part, tensors, target, dtype)
    cls = component_check.import_component_class(target.folder, part)
    own = _own_tensors(part, tensors)
    try:
        network = cls.from_single_file(
            # The conversions of some families take tensors out of what they are given.
            dict(own),
            config=str(target.folder),
            subfolder=part.name,
            torch_dtype=dtype,
            local_files_only=True,
            **_quantization(part, target),
        )
    except _TOLD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise _misfit(error, cls, part, own, target.folder) from error
    missing = [name for name, weight in network.named_parameters() if weight.is_meta]
    if missing:
        raise _lacking(part, missing)
    return network


def _own_tensors(part: Part, tensors: dict[str, LibraryObject]) -> dict[str, LibraryObject]:
    """The tensors of one of diffusers' parts by the names that its conversion reads.

    Some conversions take a family's own names only, without ComfyUI's prefix, those of UNets only
    with it; of parts beside theirs some stumble over the names.
    """
    names = single_file_parts.tensor_names(part, tensors, whole=bool(part.file and part.file.whole))
    prefix = _LDM if _LDM_ENTRY in names.values() else ""
    return {prefix + own: tensors[name] for name, own in names.items()}


def _load_encoder(
    part: Part, tensors: dict[str, LibraryObject], target: "LoadTarget", dtype: LibraryObject
) -> LibraryObject:
    """A text encoder from a checkpoint, or a file of its own."""
    cls = component_check.import_component_class(target.folder, part)
    arguments = {"dtype": dtype, "local_files_only": True, **_quantization(part, target)}
    path = part.file.path if part.file else part.folder
    try:
        if single_file_parts.is_gguf(path):
            network, missing = text_encoder_files.read_gguf(cls, part, path, arguments)
        else:
            whole = bool(part.file and part.file.whole)
            names = single_file_parts.tensor_names(part, tensors, whole=whole)
            own = {name: tensors[each] for each, name in names.items()}
            prefix = next(each.removesuffix(name) for each, name in names.items())
            network, missing = text_encoder_files.make_encoder(cls, part, own, prefix, arguments)
    except _TOLD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise _other_config(error, part) from error
    if missing:
        raise _lacking(part, missing)
    return network


def _quantization(part: Part, target: "LoadTarget") -> dict[str, Any]:
    """The arguments that keep GGUF's blocks as they are, or quantise while it loads."""
    import torch

    if part.file and part.library == "diffusers" and single_file_parts.is_gguf(part.file.path):
        import diffusers

        compute = getattr(torch, target.dtype)
        return {"quantization_config": diffusers.GGUFQuantizationConfig(compute_dtype=compute)}
    config = quantization.part_config(target.quantize, target.folder, part, target.dtype)
    return {"quantization_config": config} if config is not None else {}


def _misfit(
    error: Exception,
    cls: LibraryObject,
    part: Part,
    tensors: dict[str, LibraryObject],
    folder: Path,
) -> ModelError:
    """The error for a file that a conversion cannot make its part of."""
    if isinstance(error, KeyError):
        return _lacking(part, [str(error.args[0])])
    if missing := _missing_names(cls, part, tensors, folder):
        return _lacking(part, missing)
    return _other_config(error, part)


def _other_config(error: Exception, part: Part) -> ModelError:
    path = part.file.path if part.file else part.folder
    return ModelError(
        f"The {part.name} in {path} does not fit its config: {error_reason(error)}", hint=_HINT
    )


def _missing_names(
    cls: LibraryObject, part: Part, tensors: dict[str, LibraryObject], folder: Path
) -> list[str]:
    """The weights that diffusers' conversion does not find for a part of its own."""
    import diffusers
    from accelerate import init_empty_weights
    from diffusers.loaders import single_file_model

    classes: LibraryObject = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    config = cls.load_config(str(folder), subfolder=part.name, local_files_only=True)
    with init_empty_weights():
        wanted = cls.from_config(config).state_dict()
    convert = next(
        functions["checkpoint_mapping_fn"]
        for name, functions in classes.items()
        if issubclass(cls, getattr(diffusers, name))
    )
    try:
        found = convert(config=config, checkpoint=dict(tensors))
    except (KeyError, ValueError, IndexError, RuntimeError):
        return []
    return [name for name in wanted if name not in found]


def _lacking(part: Part, missing: list[str]) -> ModelError:
    named = ", ".join(missing[:_MAX_NAMED])
    more = f" and {len(missing) - _MAX_NAMED} others" * (len(missing) > _MAX_NAMED)
    path = part.file.path if part.file else part.folder
    return ModelError(f"{path} lacks weights of its {part.name}: {named}{more}.", hint=_HINT)


def _tell_unused(part: Part, network: LibraryObject, on_event: OnEvent) -> None:
    """Tell how many of the file's numbers for a part no layer has taken."""
    if part.name.startswith(_READ_APART) or part.file is None:
        return
    if single_file_parts.is_gguf(part.file.path):
        return
    inside = sum(
        prod(shape)
        for name, shape, _ in single_file_parts.part_tensors(part)
        if not _LEFT_OUT.fullmatch(name)
    )
    used = sum(weight.numel() for weight in network.state_dict().values())
    if inside > used:
        on_event(
            Notice(
                message=f"{inside - used:,} of the {inside:,} numbers of the {part.name} in "
                f"{part.file.path} belong to no layer of it, and are not used."
            )
        )
