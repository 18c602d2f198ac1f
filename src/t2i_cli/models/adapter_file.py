"""Reads what a LoRA or an embedding is from its file's header: every key is known, or an error.

Names of the layers' tensors are those of diffusers, kohya's sd-scripts, PEFT and LyCORIS; the
lists follow diffusers' loaders (`loaders/lora_conversion_utils.py`) and LyCORIS's `modules/`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from t2i_cli.errors import ModelError
from t2i_cli.models import checkpoint_file
from t2i_cli.models.checkpoint_file import CheckpointFile
from t2i_cli.models.lycoris_shapes import Shape, lora_size
from t2i_cli.request_adapters import AdapterKind

MAX_NAMED = 3
"""Keys that an error names; it counts the others."""
_ROLES = re.compile(
    r"(?P<layer>.+?)"
    r"(?:[._](?:"
    r"(?P<down>lora_A(?:\.default)?\.weight|lora(?:_linear_layer)?[._]down\.weight"
    r"|(?<=lora\d\.)down\.weight|lora_embedding_A)"
    r"|(?P<up>lora_B(?:\.default)?\.weight|lora(?:_linear_layer)?[._]up\.weight"
    r"|(?<=lora\d\.)up\.weight|lora_embedding_B)"
    r"|(?P<alpha>alpha)"
    r"|(?P<dora>dora_scale|lora_magnitude_vector(?:\.default)?(?:\.weight)?)"
    r"|(?P<bias>lora_B(?:\.default)?\.bias|lora_up\.bias)"
    r"|(?P<mid>lora_mid\.weight)"
    r"|(?P<lokr>lokr_(?:w1|w1_a|w1_b|w2|w2_a|w2_b|t2))"
    r"|(?P<loha>hada_(?:w1_a|w1_b|w2_a|w2_b|t1|t2))"
    r"|(?P<oft>oft_(?:blocks|diag|R)|oft_R\.weight|boft_\w+)"
    r"|(?P<diff>diff|diff_b|w_norm|b_norm|on_input|scalar)"
    r"))"
)
_PEFT_PREFIX = "base_model.model."
_FLUX_LAYER = re.compile(r"(?:diffusion_model|transformer)\.(?:double|single)_blocks\.\d+\.")
_EMBEDDING_KEYS = frozenset({"emb_params", "clip_l", "clip_g", "t5", "string_to_param", "<token>"})
_MAX_VECTORS = 75
_TOKEN = re.compile(r"\S{1,64}")


@dataclass(frozen=True, kw_only=True)
class AdapterLayer:
    """One layer of a LoRA: the shapes of its tensors by role; `keys` are their names in the file.

    `down` is (rank, in, …), `up` is (out, rank, …); LoKr has neither.
    """

    shapes: Mapping[str, Shape]
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """What a file of an adapter holds. `layers` are a LoRA's by name, as the file names them.

    `vectors` are an embedding's, by the name of the tensor. `elements` is the number of weights,
    `family` that of the models which a LoRA fits, if its layers tell it.
    """

    path: Path
    kind: AdapterKind
    elements: int
    family: str | None = None
    layers: Mapping[str, AdapterLayer] = field(default_factory=dict)
    vectors: Mapping[str, Shape] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_peft_prefix(self) -> bool:
        """Whether the layers are named as PEFT saves them, which diffusers does not look for."""
        return all(name.startswith(_PEFT_PREFIX) for name in self.layers)

    @property
    def has_mixed_names(self) -> bool:
        """Whether some factors of diffusers' layers are called lora_A, and others lora.down."""
        keys = [key for layer in self.layers.values() for key in layer.keys]
        of_peft = {".lora_A." in key or ".lora_B." in key for key in keys if "lora" in key}
        return len(of_peft) > 1 and all(key.startswith(("unet.", "transformer.")) for key in keys)

    @property
    def has_flux_names(self) -> bool:
        """Whether layers are FLUX.1's own with factors called lora_A, which diffusers renames not.

        FLUX.2's blocks have the same names, and other layers.
        """
        return self.family == "flux" and all(
            _FLUX_LAYER.match(name) and any(".lora_A." in key for key in layer.keys)
            for name, layer in self.layers.items()
        )

    @property
    def kinds(self) -> set[str]:
        """What kinds of tensors there are, as `down`, `loha` or `oft`."""
        roles = {role for layer in self.layers.values() for role in layer.shapes}
        return {role.partition(":")[0] for role in roles}


def read_adapter_file(path: Path, kind: AdapterKind) -> AdapterFile:
    """Read a LoRA's or an embedding's header. Raises ModelError for what is none."""
    what = "LoRA" if kind == "lora" else "embedding"
    header = checkpoint_file.read_checkpoint(path)
    if header.format != "safetensors":
        raise ModelError(f"{path} is a GGUF file; a {what} is loaded from safetensors.")
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    elements = sum(math.prod(shape) for shape in shapes.values())
    vectors = _vectors(shapes)
    if kind == "embedding":
        if not vectors:
            raise ModelError(f"{path} is no embedding: {_content(header)}.")
        return AdapterFile(
            path=path, kind=kind, elements=elements, vectors=vectors, metadata=header.metadata
        )
    if vectors:
        raise ModelError(
            f"{path} is no LoRA, but an embedding (textual inversion).",
            hint="--embedding FILE:token takes it.",
        )
    layers, unknown = _layers(shapes)
    if not layers:
        raise ModelError(f"{path} is no LoRA: {_content(header)}.")
    found = AdapterFile(
        path=path,
        kind=kind,
        elements=_lora_elements(path, layers),
        family=header.family,
        layers=layers,
        metadata=header.metadata,
    )
    if unknown:
        raise ModelError(
            f"{path} has {keys_text(unknown)} that belong to no LoRA; nothing of it is left out."
        )
    _check_pairs(found)
    return found


def keys_text(keys: Iterable[str]) -> str:
    """`3 keys (a, b, c)`: how many, and the first of them."""
    names = list(keys)
    shown = ", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")
    return f"{len(names):,} key{'s' if len(names) > 1 else ''} ({shown})"


def _layers(shapes: Mapping[str, Shape]) -> tuple[dict[str, AdapterLayer], list[str]]:
    """The layers of a LoRA by name, and the keys that belong to none."""
    parts: dict[str, dict[str, Shape]] = {}
    keys: dict[str, list[str]] = {}
    unknown = []
    for key, shape in shapes.items():
        match = _ROLES.fullmatch(key)
        if match is None or match.lastgroup is None:
            unknown.append(key)
            continue
        role = next(name for name, text in match.groupdict().items() if text and name != "layer")
        name = f"{role}:{key.rpartition('.')[2]}" if role in {"lokr", "loha", "diff"} else role
        parts.setdefault(match["layer"], {})[name] = shape
        keys.setdefault(match["layer"], []).append(key)
    layers = {
        name: AdapterLayer(shapes=found, keys=tuple(keys[name])) for name, found in parts.items()
    }
    return layers, unknown


def _check_pairs(found: AdapterFile) -> None:
    """Raise ModelError for a layer that lacks one of its tensors, or whose ranks differ."""
    lonely = [
        layer.keys[0]
        for layer in found.layers.values()
        if ("down" in layer.shapes) != ("up" in layer.shapes)
        or set(layer.shapes) <= {"alpha", "dora"}
    ]
    if lonely:
        raise ModelError(
            f"{found.path} is incomplete: {keys_text(lonely)} without what belongs to it."
        )
    uneven = [
        layer.keys[0]
        for layer in found.layers.values()
        if "down" in layer.shapes and not _ranks_agree(layer.shapes["down"], layer.shapes["up"])
    ]
    if uneven:
        raise ModelError(f"{found.path} is damaged: the ranks of {keys_text(uneven)} do not agree.")


def _lora_elements(path: Path, layers: Mapping[str, AdapterLayer]) -> int:
    """The numbers that the layers have once they are a LoRA's. Raises ModelError for bad shapes."""
    elements = 0
    for layer in layers.values():
        try:
            size = lora_size(layer.shapes)
        except ValueError as error:
            raise ModelError(f"{path} is damaged: of {keys_text(layer.keys)} {error}.") from None
        elements += size.elements if size else sum(map(math.prod, layer.shapes.values()))
    return elements


def _ranks_agree(down: Shape, up: Shape) -> bool:
    return len(down) >= 2 and len(up) >= 2 and down[0] == up[1]  # noqa: PLR2004 - a matrix


def _vectors(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The tensors of an embedding by name; empty if the file is none.

    AUTOMATIC1111 saves `emb_params`, for SDXL `clip_l` and `clip_g`; diffusers saves one tensor
    under the token's name.
    """
    flat = {name: shape for name, shape in shapes.items() if len(shape) in {1, 2}}
    if flat != dict(shapes) or any(s[0] > _MAX_VECTORS for s in flat.values() if len(s) > 1):
        return {}
    known = set(shapes) <= _EMBEDDING_KEYS
    single = len(shapes) == 1 and all(
        _TOKEN.fullmatch(name) and not _ROLES.fullmatch(name) and not name.endswith(".weight")
        for name in shapes
    )
    return flat if known or single else {}


def _content(file: CheckpointFile) -> str:
    """What a file holds in place of an adapter, as part of a sentence."""
    if file.kind == "unknown":
        return f"its {keys_text(file.tensors)} are none of one"
    words, option = _KINDS.get(file.kind, (f"a file of kind {file.kind}", ""))
    return f"it is {words}" + (f", which {option} takes" if option else "")


_KINDS = {
    "checkpoint": ("a whole model", "-m"),
    "transformer": ("the transformer of a model", "--transformer"),
    "unet": ("the UNet of a model", "--unet"),
    "vae": ("a VAE", "--vae"),
    "text_encoder": ("a text encoder", "--text-encoder"),
    "lora": ("a LoRA", "--lora"),
    "embedding": ("an embedding (textual inversion)", "--embedding"),
    "controlnet": ("a ControlNet", ""),
    "ip_adapter": ("an IP adapter", ""),
}
"""What kinds of files are called, and the options that take them."""
