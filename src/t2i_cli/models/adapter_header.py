"""What a LoRA file's tensors tell: its format, algorithms, rank, modules, and the family it fits.

Formats are those of kohya's sd-scripts, diffusers, PEFT, XLabs and LyCORIS.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from t2i_cli.models.safetensors_header import TensorHeader

_TENSOR = re.compile(
    r"(?P<module>.+?)(?:"
    r"\.(?P<kohya>lora_(?:down|up|mid)\.weight)"
    r"|\.(?P<peft>lora_(?:A|B|embedding_A|embedding_B)(?:\.[\w-]+)?(?:\.weight)?)"
    r"|(?P<xlabs>\.processor\.(?:qkv|proj)_lora\d?\.(?:down|up)\.weight)"
    r"|(?P<diffusers>(?:\.lora|_lora|\.lora_linear_layer)\.(?:down|up)\.weight)"
    r"|\.(?P<lycoris>hada_(?:w[12](?:_[ab])?|t[12])|lokr_(?:w[12](?:_[ab])?|t2)"
    r"|oft_(?:blocks|diag|R)(?:\.weight)?|diff|diff_b|w_norm|b_norm|on_input|a[12]\.weight"
    r"|b[12]\.weight)"
    r"|\.(?P<scale>dora_scale|lora_magnitude_vector(?:\.weight)?|alpha)"
    r")"
)
_ALGORITHMS = (
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("oft_", "OFT"),
    ("on_input", "IA3"),
    ("diff", "full difference"),
    ("w_norm", "norms"),
    ("b_norm", "norms"),
    ("a", "GLoRA"),
    ("b", "GLoRA"),
)
_LEAST_SHARE = 0.3
"""Of an adapter's tensors at least so many are of such a kind; others may be embeddings."""
_TEXT_ENCODERS = (
    (re.compile(r"^(lora_te2_|text_encoder_2[._]|lora_te_text_model_2)"), "text_encoder_2"),
    (re.compile(r"^(lora_te3_|text_encoder_3[._]|text_encoders\.t5)"), "text_encoder_3"),
    (re.compile(r"^(lora_te1?_|text_encoders?[._]|lora_prior_te_)"), "text_encoder"),
)
_PREFIX = re.compile(
    r"^(base_model[._]model[._]|lora_unet_|lora_transformer_|lora_prior_unet_|lycoris_|oft_unet_"
    r"|model[._]diffusion_model[._]|diffusion_model[._]|transformer[._](?!blocks)|unet[._])+"
)
_UNET = re.compile(r"^(input|output|middle|down|up|mid)_blocks?_")
_CROSS = re.compile(r"attn2(_processor)?_to_[kv]")
_CONTEXTS = {768: "sd15", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""Families of UNets by the width of the text that their cross attention takes."""
_FLUX2_WIDTHS = {3072: "flux2-klein", 4096: "flux2-klein-9b", 6144: "flux2-dev"}
_FLUX_BLOCKS = {"double": 19, "single": 38}
"""FLUX.1's blocks; HunyuanVideo's have the same names and sizes, and there are more of them."""


class AdapterHeader(NamedTuple):
    """What an adapter's tensors tell."""

    format: str
    algorithms: tuple[str, ...]
    modules: int
    ranks: tuple[int, int] | None
    """The smallest and the largest."""
    family: str | None
    """The family of the models that it fits, of FLUX.1's all just `flux`."""
    parts: tuple[str, ...]


class _Module(NamedTuple):
    """A layer that an adapter changes: its name with underscores only, its widths, its rank."""

    name: str
    taken: int | None
    given: int | None
    rank: int | None


def read_adapter(tensors: Mapping[str, TensorHeader]) -> AdapterHeader | None:
    """What the tensors of an adapter tell, `None` if they are those of something else."""
    matches = {name: found for name in tensors if (found := _TENSOR.fullmatch(name))}
    kinds = [kind for found in matches.values() if (kind := found.lastgroup or "") != "scale"]
    if not kinds or len(matches) < _LEAST_SHARE * len(tensors):
        return None
    form = max(("kohya", "peft", "xlabs", "diffusers", "lycoris"), key=kinds.count)
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, found in matches.items():
        suffix = name[found.end("module") :].lstrip("._")
        modules.setdefault(found["module"], {})[suffix] = tensors[name].shape
    modules = {name: found for name, found in modules.items() if set(found) != {"alpha"}}
    ranks = [rank for found in modules.values() if (rank := _sizes(found)[2])]
    return AdapterHeader(
        format=form,
        algorithms=_algorithms(modules.values()),
        modules=len(modules),
        ranks=(min(ranks), max(ranks)) if ranks else None,
        family=_family(modules),
        parts=_parts(modules),
    )


def _algorithms(modules: Iterable[Mapping[str, object]]) -> tuple[str, ...]:
    """The names of the ways in which the modules' changes are stored."""
    found = set()
    for suffix in {suffix for module in modules for suffix in module}:
        if suffix.startswith(("dora_scale", "lora_magnitude")):
            found.add("DoRA")
        elif "lora" in suffix or suffix.startswith(("down.", "up.")):
            found.add("LoRA")
        elif suffix != "alpha":
            found.add(next(name for start, name in _ALGORITHMS if suffix.startswith(start)))
    return tuple(sorted(found))


def _sizes(tensors: Mapping[str, tuple[int, ...]]) -> tuple[int | None, int | None, int | None]:
    """The width that a module takes, that it gives, and its rank, as far as the shapes tell."""
    taken = given = rank = None
    for suffix, shape in tensors.items():
        if len(shape) < 2:
            continue
        if re.search(r"down|lora_A|lora_embedding_A", suffix):
            rank, taken = shape[0], shape[1]
        elif re.search(r"\bup\b|lora_up|lora_B|lora_embedding_B", suffix):
            given = shape[0]
        elif suffix in {"hada_w1_b", "hada_w2_b"}:
            rank, taken = shape[0], shape[1]
        elif suffix == "hada_w1_a":
            given = shape[0]
        elif suffix in {"lokr_w1_b", "lokr_w2_b"}:
            rank = shape[0]
        elif suffix == "diff":
            given, taken = shape[0], shape[1]
    return taken, given, rank


def _parts(modules: Iterable[str]) -> tuple[str, ...]:
    """The pipeline's parts that the modules lie in."""
    found = {_part(name) for name in modules}
    return tuple(sorted(found))


def _part(name: str) -> str:
    for pattern, part in _TEXT_ENCODERS:
        if pattern.match(name):
            return part
    return "unet" if _UNET.match(_plain(name)) else "transformer"


def _plain(name: str) -> str:
    """A denoiser's module without its format's prefix, with underscores only."""
    return _PREFIX.sub("", name).replace(".", "_")


def _family(modules: Mapping[str, Mapping[str, tuple[int, ...]]]) -> str | None:
    """The family of the models that an adapter with these modules fits, if they tell it."""
    parts = {name: _part(name) for name in modules}
    found = [
        _Module(_plain(name), *_sizes(tensors))
        for name, tensors in modules.items()
        if parts[name] in {"unet", "transformer"}
    ]
    if any(part == "unet" for part in parts.values()):
        return _unet_family(found) or ("sdxl" if "text_encoder_2" in parts.values() else None)
    if found:
        return _transformer_family(found)
    return "sdxl" if any(name.startswith("lora_te2_") for name in modules) else None


def _unet_family(modules: Iterable[_Module]) -> str | None:
    """The family by the width of the texts, or by the deep blocks that only SDXL has."""
    for module in modules:
        if _CROSS.search(module.name) and (family := _CONTEXTS.get(module.taken or 0)):
            return family
    if any(re.search(r"_transformer_blocks_[1-9]", module.name) for module in modules):
        return "sdxl"
    return None


def _transformer_family(modules: list[_Module]) -> str | None:
    """The family by the names of the blocks, and by their widths where names are shared."""
    widths = {module.taken for module in modules}
    named = "\n".join(module.name for module in modules)

    def has(pattern: str) -> bool:
        return re.search(rf"^(?:{pattern})", named, re.MULTILINE) is not None

    if has("double_blocks|single_blocks"):
        return _flux_family(modules)
    if has("(single_)?transformer_blocks_.*(to_qkv_mlp_proj|ff_linear_in|ff_context_linear_in)"):
        return next((name for width, name in _FLUX2_WIDTHS.items() if width in widths), None)
    if has("single_transformer_blocks"):
        return "flux"
    if has("joint_blocks") or (has("transformer_blocks_.*add_._proj") and widths & {1536, 2432}):
        return "sd3"
    if has(r"transformer_blocks_\d+_(img|txt)_(mlp|mod)|transformer_blocks_(19|[2-5]\d)_attn_add"):
        return "qwen-image"
    if has(r"transformer_blocks_.*(add_._proj|ff_context)"):
        return "flux"
    if has(r"(layers|noise_refiner|context_refiner)_\d+_(attention|feed_forward|adaLN)"):
        return "z-image" if 3840 in widths else "lumina2" if 2304 in widths else None
    for pattern, family in (
        ("double_layers|single_layers|joint_transformer_blocks", "auraflow"),
        ("(double|single)_stream_blocks", "hidream"),
        (r"blocks_\d+_(self_attn|cross_attn)_[qkv]_proj|blocks_\d+_mlp_layer", "cosmos2"),
        (r"blocks_\d+_(self_attn|cross_attn|ffn)_|blocks_\d+_attn1_", "wan"),
        (r"blocks_\d+_attn_w[qkvo]|txtfusion", "krea2"),
    ):
        if has(pattern):
            return family
    if has(r"transformer_blocks_\d+_attn[12]_"):
        return "ltx-video" if widths & {2048, 4096} else None
    return None


def _flux_family(modules: list[_Module]) -> str:
    """The family of an adapter for FLUX's blocks, which HunyuanVideo and FLUX.2 have, too."""
    for module in modules:
        if block := re.match(r"(double|single)_blocks_(\d+)_", module.name):
            kind, number = block[1], int(block[2])
            per_width = (module.given or 0) / module.taken if module.taken else 0
            # A single block's first layer gives 7 widths in FLUX.1, 9 in FLUX.2.
            if module.name.endswith("linear1") and per_width == 9:
                return _FLUX2_WIDTHS.get(module.taken or 0, "flux2-dev")
            if module.taken in {4096, 6144} and module.name.endswith("img_attn_qkv"):
                return _FLUX2_WIDTHS[module.taken]
            if number >= _FLUX_BLOCKS[kind]:
                return "hunyuan-video" if module.taken == 3072 else "flux2-dev"
    return "flux"
