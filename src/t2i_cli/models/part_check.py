"""Whether a part from elsewhere fits a model, told by configs and headers before any weight."""

import re
from collections.abc import Mapping
from pathlib import Path

from t2i_cli.errors import InputError, ModelError
from t2i_cli.models import diffusers_folder, family_bases, single_file_classes
from t2i_cli.models.checkpoint_contents import latent_channels
from t2i_cli.models.checkpoint_file import CheckpointFile
from t2i_cli.models.sources import Part

NOUNS = {"vae": "VAE", "text_encoder": "text encoder", "transformer": "transformer or UNet"}
"""What the fields of parts are called in sentences."""
_READ_QUANTIZED = {"gguf", "scaled"}
"""How weights may be quantised in files that are read by diffusers' conversions."""
_KINDS = {
    "vae": {"vae"},
    "text_encoder": {"text_encoder"},
    "transformer": {"transformer", "unet"},
}
"""Kinds of files that a field takes; those of a checkpoint are taken, too."""
_KEYS: Mapping[str, tuple[str, ...]] = {
    "vae": ("latent_channels",),
    "text_encoder": ("hidden_size", "d_model", "vocab_size", "projection_dim"),
    "transformer": (
        *("in_channels", "out_channels", "cross_attention_dim", "joint_attention_dim"),
        *("pooled_projection_dim", "caption_channels", "cap_feat_dim", "addition_embed_type"),
        *("projection_class_embeddings_input_dim", "patch_size", "guidance_embeds"),
    ),
}
"""Keys of configs by which a part fits the others of its pipeline."""
_SCALES = ("scaling_factor", "shift_factor")
"""Keys of a VAE's config by which the latents of a family differ from another's."""
_DIFFUSERS_BLOCK = re.compile(r"(^|\.)(down|up|mid|transformer)_blocks?\.")
"""In names of parts that are in diffusers' own layout."""
_TOKEN_TABLES = (
    *("token_embedding.weight", "shared.weight", "embed_tokens.weight"),
    "token_embd.weight",
)
_WIDTHS = ("hidden_size", "d_model")


def check_file(field: str, checkpoint: CheckpointFile, base: Path) -> None:
    """Raise InputError for a file of another kind than the field's, or of another family."""
    if checkpoint.kind not in _KINDS[field] and checkpoint.kind != "checkpoint":
        what = checkpoint.kind.replace("_", " ")
        raise InputError(
            f"{checkpoint.path} holds no {NOUNS[field]}: it is a file of the kind {what!r}.",
            field=field,
        )
    if (checkpoint.kind, checkpoint.family) != ("vae", "wan"):  # Qwen-Image's has its layout
        family_bases.check_family(checkpoint, base, field)
    if how := checkpoint.quantization:
        check_loadable(checkpoint, how)


def check_loadable(checkpoint: CheckpointFile, how: str) -> None:
    """Raise ModelError for a file whose weights are quantised as diffusers does not read it."""
    if how not in _READ_QUANTIZED:
        raise ModelError(
            f"The weights in {checkpoint.path} are quantised ({how}), with other tensors beside "
            "them; diffusers reads no such file.",
            hint="Look for a copy in fp16, bf16, plain fp8 or GGUF.",
        )


def check_plain_file(checkpoint: CheckpointFile, part: Part) -> None:
    """Raise ModelError for a file of one of diffusers' parts that is not read as it is."""
    if how := checkpoint.quantization:
        raise ModelError(
            f"The weights in {checkpoint.path} are quantised ({how}), which is not read for a "
            f"{part.cls}.",
            hint="Look for a copy in fp16, bf16 or plain fp8.",
        )
    if not any(_DIFFUSERS_BLOCK.search(name) for name in checkpoint.tensors):
        raise unread_layout(checkpoint, part)


def unread_layout(checkpoint: CheckpointFile, part: Part) -> ModelError:
    """The error for a file of a class that diffusers reads in its own layout only."""
    return ModelError(
        f"{checkpoint.path} is in a layout of which diffusers makes no {part.cls}.",
        hint="Name the folder or the repository of that part in diffusers' layout instead.",
    )


def check_encoder_file(checkpoint: CheckpointFile, part: Part) -> None:
    """Raise ModelError for a GGUF file of a text encoder that transformers does not read."""
    known = single_file_classes.gguf_architectures(part)
    told = checkpoint.metadata.get("general.architecture", "none")
    if checkpoint.format == "gguf" and told not in known:
        read = f"only of {' and '.join(known)}" if known else "of none"
        raise ModelError(
            f"{checkpoint.path} is a GGUF file of the architecture {told:.40}; t2i makes a "
            f"{part.cls} {read}.",
            hint="Look for a copy in safetensors.",
        )


def check_latents(checkpoint: CheckpointFile, part: Part) -> None:
    """Raise InputError for a VAE in a file whose latents are of another width than the model's."""
    config = diffusers_folder.component_config(part.folder.parent, part.name)
    wanted, found = config.get("latent_channels"), latent_channels(checkpoint.tensors)
    if None not in (wanted, found) and wanted != found:
        raise _other_width(str(checkpoint.path), "vae", "latents", found, wanted)


def encoder_in_file(checkpoint: CheckpointFile, encoders: list[Part]) -> Part:
    """The text encoder that a file takes the place of, by its class and width. Raises InputError.

    The tensors of T5 are in blocks (`enc.blk` in GGUF), those of CLIP below `text_model` or in
    `resblocks`.
    """
    names = checkpoint.tensors
    table = next((s for n, (s, _) in names.items() if n.endswith(_TOKEN_TABLES)), None)
    width = table[1] if table and len(table) == 2 else None
    is_t5 = any("encoder.block." in name or "enc.blk." in name for name in names)
    alike = [part for part in encoders if ("T5" in part.cls) == is_t5]
    fitting = [part for part in alike if _width(part) in (None, width)]
    if fitting:
        return fitting[0]
    described = ", ".join(f"{part.cls} of width {_width(part)}" for part in encoders)
    raise InputError(
        f"{checkpoint.path} is no text encoder of this model: it is {'a T5' if is_t5 else 'one'} "
        f"of width {width}, and the model has {described}.",
        field="text_encoder",
    )


def _width(part: Part) -> object:
    config = diffusers_folder.component_config(part.folder.parent, part.name)
    return next((config[key] for key in _WIDTHS if key in config), None)


def check_part_folder(field: str, folder: Path, source: str, part: Part) -> None:
    """Raise InputError for a part in a folder whose config does not fit the model's own."""
    found = diffusers_folder.component_config(folder.parent, folder.name)
    own = diffusers_folder.component_config(part.folder.parent, part.name)
    cls = _class(found)
    if field != "vae" and cls and cls != part.cls:
        raise InputError(
            f"{source} holds a {cls:.80}, and the model's {NOUNS[field]} is a {part.cls}.",
            field=field,
        )
    if field == "vae" and not cls.startswith(("Autoencoder", "AsymmetricAutoencoder")):
        raise InputError(f"{source} holds a {cls or 'part without a class'}, no VAE.", field=field)
    for key in _KEYS[field]:
        if key in own and key in found and own[key] != found[key]:
            raise _other_width(source, field, key, found[key], own[key])
    if field == "vae" and cls == part.cls:
        for key in _SCALES:
            if own.get(key) is not None and found.get(key, own[key]) != own[key]:
                raise _other_width(source, field, key, found[key], own[key])


def _class(config: Mapping[str, object]) -> str:
    """The class of a part by its config: diffusers names it, transformers lists one."""
    kinds = config.get("architectures")
    name = config.get("_class_name") or (kinds[0] if isinstance(kinds, list) and kinds else "")
    return str(name)


def _other_width(source: str, field: str, key: str, found: object, wanted: object) -> InputError:
    what = {"latents": "a VAE of latents"}.get(key, f"a {NOUNS[field]} with {key}")
    value = f"with {found} channels" if key == "latents" else f"{found}"
    return InputError(
        f"{source} is {what} {value}, and the model needs {wanted}: it is of another family.",
        field=field,
    )
