"""Whether a file of weights makes images from text, and what is told of one that does not."""

import re
from typing import NamedTuple

from t2i_cli.errors import ModelError
from t2i_cli.models.checkpoint_contents import CheckpointKind
from t2i_cli.models.checkpoint_families import FAMILIES, Task
from t2i_cli.models.checkpoint_file import CheckpointFile

_SHARD = re.compile(r"-\d{5}-of-(\d{5})$")
_DENOISERS = {"checkpoint", "unet", "transformer"}
_TEXT_ONLY = "t2i makes images from text alone."
_TASKS: dict[Task, str] = {
    "video": "which makes videos",
    "audio": "which makes sound",
    "3d": "which makes views or shapes of things in space",
    "inpainting": "an inpainting model, which fills a part of a given image",
    "refiner": "a refiner, which improves given images and makes none from text",
    "upscaler": "an upscaler, which enlarges given images",
    "editing": "which changes given images",
}
"""What a family's models do, after its name."""
_PREPARED = {
    "nunchaku": "Nunchaku (SVDQuant)",
    "bitsandbytes 4-bit": "bitsandbytes in 4 bits",
    "bitsandbytes 8-bit": "bitsandbytes in 8 bits",
    "quanto": "quanto",
}
"""Quantisations of single files that are not read; folders may have them."""


class _Kind(NamedTuple):
    """What a kind of file is called, and what to do with it."""

    what: str
    hint: str


_OTHER_KINDS: dict[CheckpointKind, _Kind] = {
    "lora": _Kind(
        "a LoRA, which changes a model and is none itself", "`-m MODEL --lora FILE` uses it."
    ),
    "vae": _Kind("a VAE, one part of a model", "`-m MODEL --vae FILE` uses it."),
    "text_encoder": _Kind(
        "a text encoder, one part of a model", "`-m MODEL --text-encoder FILE` uses it."
    ),
    "embedding": _Kind(
        "a textual inversion, a word for prompts", "`-m MODEL --embedding FILE` uses it."
    ),
    "controlnet": _Kind("a ControlNet, which steers a model by a given image", _TEXT_ONLY),
    "ip_adapter": _Kind("an IP-Adapter, which steers a model by a given image", _TEXT_ONLY),
    "t2i_adapter": _Kind("a T2I-Adapter, which steers a model by a given image", _TEXT_ONLY),
    "motion_module": _Kind("a motion module, which makes a model's images move", _TEXT_ONLY),
    "image_encoder": _Kind("an encoder of images, which makes none", _TEXT_ONLY),
    "upscaler": _Kind("an upscaler, which enlarges given images", _TEXT_ONLY),
}


def family_title(family: str | None) -> str | None:
    """A family's name for people; other names, as of text encoders, stay as they are."""
    return FAMILIES[family].title if family in FAMILIES else family


def check_text_to_image(file: CheckpointFile, *, with_base: bool = False) -> None:
    """Raise ModelError, which says what the file is, unless it makes images from text.

    `with_base`: the user has named the model whose configs it fits, so that its family may be
    one that is not known.
    """
    if other := _OTHER_KINDS.get(file.kind):
        fitting = f" (for {family_title(file.family)})" if file.family in FAMILIES else ""
        raise ModelError(f"{file.path} is {other.what}{fitting}.", hint=other.hint)
    if file.kind not in _DENOISERS:
        raise ModelError(
            f"{file.path} holds {len(file.tensors):,} tensors, and no model that t2i knows.",
            hint="t2i takes checkpoints, UNets and transformers of the families in docs/models.md.",
        )
    _check_whole(file)
    if file.family is None:
        if with_base:
            return
        raise ModelError(
            f"{file.path} holds a {'UNet' if 'unet' in file.parts else 'transformer'} of no family "
            "that t2i knows.",
            hint="--base names the model whose configs it fits.",
        )
    family = FAMILIES[file.family]
    if family.task != "text-to-image":
        raise ModelError(
            f"{file.path} is {family.title}, {_TASKS[family.task]}.",
            hint=_TEXT_ONLY,
        )
    if family.refusal:
        raise ModelError(
            f"{file.path} is {family.title}, which t2i does not run from a file: {family.refusal}.",
            hint="`-m` with the model's folder or repository in diffusers' layout may run it.",
        )


def _check_whole(file: CheckpointFile) -> None:
    """Raise ModelError for one of several files, a misleading name, or an unread quantisation."""
    if shard := _SHARD.search(file.path.stem):
        raise ModelError(
            f"{file.path} is one of {int(shard[1])} files that are a model together.",
            hint="Name the folder that they are in, if it has a model_index.json.",
        )
    suffix = ".gguf" if file.format == "gguf" else ".safetensors"
    if file.path.suffix.lower() != suffix and file.path.suffix:
        raise ModelError(
            f"{file.path} is a {suffix[1:]} file under another name.",
            hint=f"Rename it so that it ends in {suffix}.",
        )
    if prepared := _PREPARED.get(file.quantization or ""):
        raise ModelError(
            f"{file.path} is quantised by {prepared}, which is not read from a single file.",
            hint="Take its fp8, fp16 or GGUF version.",
        )
