"""LyCORIS's kinds of layers: each becomes a LoRA of the same change, as peft's formulas have it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.loha import layer as peft_loha
from peft.tuners.lokr import layer as peft_lokr
from safetensors.torch import save_file

from t2i_cli import postcard
from t2i_cli.backends.local import lora_loading
from t2i_cli.backends.local.lycoris_factors import lora_factors
from t2i_cli.errors import ModelError
from t2i_cli.models.adapter_file import read_adapter_file
from t2i_cli.models.adapter_fit import check_lora_fit
from t2i_cli.models.lycoris_shapes import lora_size

RANK, ALPHA = 2, 1.0
Layer = dict[str, torch.Tensor]
_random = torch.Generator().manual_seed(5)


def tensor(*shape: int) -> torch.Tensor:
    """Random numbers."""
    return torch.randn(*shape, generator=_random) * 0.5


def loha(rows: int, inputs: int, *kernel: int, tucker: bool = False, rank: int = RANK) -> Layer:
    """LoHa, of a convolution with the kernel in the second factor, or with Tucker's factors."""
    found = {"alpha": torch.tensor(ALPHA)}
    places = kernel[0] * kernel[1] if kernel else 1
    for number in "12":
        name = f"hada_w{number}"
        if tucker:
            found |= {f"{name}_a": tensor(rank, rows), f"{name}_b": tensor(rank, inputs)}
            found[f"hada_t{number}"] = tensor(rank, rank, *kernel)
        else:
            found |= {f"{name}_a": tensor(rows, rank), f"{name}_b": tensor(rank, inputs * places)}
    return found


def loha_change(layer: Layer) -> torch.Tensor:
    """The change as peft computes it."""
    scale = torch.tensor(ALPHA / layer["hada_w1_b"].shape[0])
    one, other = ([layer[f"hada_w{n}_{end}"] for end in "ab"] for n in "12")
    if "hada_t1" in layer:
        one, other = [layer["hada_t1"], *one], [layer["hada_t2"], *other]
    compute: Any = peft_loha.make_weight_cp if "hada_t1" in layer else peft_loha.make_weight
    change: torch.Tensor = compute(*one, *other, scale)
    return change


def lokr(
    first: tuple[int, int], second: tuple[int, ...], *, whole: str = "", tucker: bool = False
) -> Layer:
    """LoKr of two matrices of these sizes, of which those in `whole` have no factors."""
    found = {"alpha": torch.tensor(ALPHA)}
    for number, (rows, inputs, *kernel) in (("1", first), ("2", second)):
        name = f"lokr_w{number}"
        if number in whole:
            found[name] = tensor(rows, inputs, *kernel)
        elif tucker and number == "2":
            found |= {f"{name}_a": tensor(RANK, rows), f"{name}_b": tensor(RANK, inputs)}
            found["lokr_t2"] = tensor(RANK, RANK, *kernel)
        else:
            found |= {f"{name}_a": tensor(rows, RANK), f"{name}_b": tensor(RANK, inputs, *kernel)}
    return found


def lokr_change(layer: Layer) -> torch.Tensor:
    """The change as peft computes it, with the kernel of a second factor as LyCORIS saves it."""
    halves = []
    for number in "12":
        name = f"lokr_w{number}"
        if name in layer:
            halves.append(layer[name])
        elif number == "2" and "lokr_t2" in layer:
            halves.append(
                peft_lokr.make_weight_cp(layer["lokr_t2"], layer[f"{name}_a"], layer[f"{name}_b"])
            )
        else:
            halves.append(torch.einsum("ir,r...->i...", layer[f"{name}_a"], layer[f"{name}_b"]))
    decomposed = any(name.endswith("_b") for name in layer)
    compute: Any = peft_lokr.make_kron
    change: torch.Tensor = compute(*halves, ALPHA / RANK if decomposed else 1.0)
    return change


def locon_with_mid(rows: int, inputs: int, *kernel: int) -> Layer:
    """LoCon with Tucker's factors, as LyCORIS saves it for convolutions."""
    return {
        "alpha": torch.tensor(ALPHA),
        "lora_up.weight": tensor(rows, RANK, 1, 1),
        "lora_down.weight": tensor(RANK, inputs, 1, 1),
        "lora_mid.weight": tensor(RANK, RANK, *kernel),
    }


def mid_change(layer: Layer) -> torch.Tensor:
    """The change of LoCon with Tucker's factors (LyCORIS's `functional/general.py`)."""
    up, down = (layer[f"lora_{end}.weight"].flatten(1) for end in ("up", "down"))
    mid = layer["lora_mid.weight"]
    return torch.einsum("mn...,im,nj->ij...", mid, up, down) * ALPHA / RANK


def plain_change(layer: Layer) -> torch.Tensor:
    """The change of a LoRA of matrices."""
    return layer["lora_up.weight"] @ layer["lora_down.weight"] * ALPHA / RANK


BLOCK = "mid_block.attentions.0"
ATTENTION = f"{BLOCK}.transformer_blocks.0.attn1"
RESNET = "mid_block.resnets.0"
WHOLE = {"diff": tensor(160, 128)}
PLAIN = {
    "alpha": torch.tensor(ALPHA),
    "lora_up.weight": tensor(160, RANK),
    "lora_down.weight": tensor(RANK, 160),
}
LAYERS = {
    f"{ATTENTION}.to_q": (loha(160, 160), loha_change),
    f"{BLOCK}.proj_in": (loha(160, 160, 1, 1), loha_change),
    f"{RESNET}.conv1": (loha(160, 160, 3, 3), loha_change),
    f"{RESNET}.conv2": (loha(160, 160, 3, 3, tucker=True), loha_change),
    f"{ATTENTION}.to_k": (lokr((8, 10), (20, 16)), lokr_change),
    f"{ATTENTION}.to_v": (lokr((2, 4), (80, 40), whole="1"), lokr_change),
    f"{RESNET}.time_emb_proj": (lokr((8, 2), (40, 96), whole="12"), lokr_change),
    "mid_block.resnets.1.conv1": (lokr((4, 4), (40, 40, 3, 3), whole="1"), lokr_change),
    "mid_block.resnets.1.conv2": (lokr((4, 4), (40, 40, 3, 3), tucker=True), lokr_change),
    "up_blocks.1.resnets.0.conv2": (locon_with_mid(96, 96, 3, 3), mid_change),
    f"{BLOCK}.transformer_blocks.0.attn2.to_k": (WHOLE, lambda layer: layer["diff"]),
    f"{ATTENTION}.to_out.0": (PLAIN, plain_change),
}
"""Layers of postcard's UNet, their tensors, and the formula of their change."""


def save(path: Path, layers: dict[str, Layer], start: str = "lora_unet_") -> Path:
    """A file as kohya and LyCORIS name layers."""
    tensors = {
        f"{start}{layer.replace('.', '_')}.{end}": value.contiguous()
        for layer, found in layers.items()
        for end, value in found.items()
    }
    save_file(tensors, str(path))
    return path


@pytest.mark.parametrize("start", ["lora_unet_", "lycoris_"])
def test_each_kind_of_layer_changes_the_network_as_its_formula_says(
    tmp_path: Path, start: str
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(postcard.FOLDER)
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    path = save(
        tmp_path / "all.safetensors", {name: each[0] for name, each in LAYERS.items()}, start
    )
    found = read_adapter_file(path, "lora")
    check_lora_fit(found, postcard.FOLDER, "postcard")
    lora_loading.load_lora(pipe, found, "all", "postcard")
    elements = 0
    for name, (tensors, formula) in LAYERS.items():
        layer = pipe.unet.get_submodule(name)
        expected = formula(tensors).reshape(layer.weight.shape)
        assert torch.allclose(layer.get_delta_weight("all"), expected, rtol=1e-4, atol=1e-4), name
        elements += layer.lora_A["all"].weight.numel() + layer.lora_B["all"].weight.numel()
    # The plan counts what is in the network, not what the file holds; three alphas are the LoRA's.
    assert 0 <= found.elements - elements <= 2
    lora_loading.unload_loras(pipe)
    left = pipe.unet.state_dict()
    assert left.keys() == before.keys()
    assert all(weight.equal(left[name]) for name, weight in before.items())


def test_a_great_rank_takes_no_more_than_the_whole_change() -> None:
    layer = {
        f"loha:{end}" if end != "alpha" else end: each for end, each in loha(6, 9, rank=4).items()
    }
    size = lora_size({role: tuple(each.shape) for role, each in layer.items()})
    assert size is not None
    assert (size.rows, size.columns, size.rank) == (6, 9, 6)
    up, down = lora_factors(layer)
    assert (up.shape, down.shape) == ((6, 6), (6, 9))
    expected = loha_change({role.removeprefix("loha:"): each for role, each in layer.items()})
    assert torch.allclose(up @ down, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"alpha": (3,)}, "the alpha is no single number"),
        ({"down": (4, 96), "up": (96, 4)}, "two kinds of changes"),
        ({"lokr:lokr_w1": (2, 2), "lokr:lokr_w2": (48, 48)}, "two kinds of changes"),
        ({"diff:diff": (96, 96)}, "two kinds of changes"),
        ({"loha:hada_w1_a": (96, 0), "loha:hada_w1_b": (0, 96)}, "has no numbers"),
    ],
)
def test_tensors_that_make_no_change_of_a_layer_are_damage(
    more: dict[str, tuple[int, ...]], said: str
) -> None:
    shapes = {
        f"loha:hada_w{n}_{end}": (96, 4) if end == "a" else (4, 96) for n in "12" for end in "ab"
    }
    assert lora_size({**shapes, "alpha": ()}) == (96, 96, 16)
    with pytest.raises(ValueError, match=said):
        lora_size({**shapes, **more})


def test_what_is_no_such_change_is_told(tmp_path: Path) -> None:
    layers = {name: each[0] for name, each in LAYERS.items()}
    query, norm = f"{ATTENTION}.to_q", f"{BLOCK}.norm"
    factors = layers[query]
    oft = {query: {"oft_blocks": tensor(20, 8, 8)}}
    cases = {
        "is an OFT of LyCORIS, which diffusers does not load": oft,
        "of 4 keys": {query: {end: each for end, each in factors.items() if end != "hada_w2_b"}},
        "the ranks of two factors do not agree": {query: factors | {"hada_w1_b": tensor(3, 160)}},
        "have another shape": {query: loha(160, 128)},
        "its 1 key (lora_unet_mid_block_attentions_0_norm.w_norm) change no matrix": layers
        | {norm: {"w_norm": tensor(160)}},
    }
    pipe = StableDiffusionPipeline.from_pretrained(postcard.FOLDER)
    before = list(pipe.unet.state_dict())
    for number, (expected, wrong) in enumerate(cases.items()):
        path = save(tmp_path / f"{number}.safetensors", wrong)
        with pytest.raises(ModelError) as error:
            found = read_adapter_file(path, "lora")
            check_lora_fit(found, postcard.FOLDER, "postcard")
            lora_loading.load_lora(pipe, found, "x", "postcard")
        assert expected in str(error.value)
    assert list(pipe.unet.state_dict()) == before


def plain(rank: int, alpha: float | None, rows: int, inputs: int, *kernel: int) -> Layer:
    """A LoRA's layer, or one of LoCon with a kernel; an alpha that is `None` is not there."""
    places = (1, 1) if kernel else ()
    found = {
        "lora_up.weight": tensor(rows, rank, *places),
        "lora_down.weight": tensor(rank, inputs, *kernel),
    }
    return found if alpha is None else found | {"alpha": torch.tensor(alpha)}


@pytest.mark.parametrize(
    ("ranks", "alphas"),
    [
        ((1, 3, 4, 2), (1.0, 3.0, None, 2.0)),
        ((1, 3, 4, 2), (None,) * 4),
        ((2, 2, 2, 2), (1.0, 3.0, 1.0, 2.0)),
        ((2, 2, 4, 2), (1.0,) * 4),
    ],
)
def test_each_layer_has_its_own_rank_and_alpha(
    tmp_path: Path, ranks: tuple[int, ...], alphas: tuple[float | None, ...]
) -> None:
    shapes = {
        f"{ATTENTION}.to_q": (160, 160),
        f"{ATTENTION}.to_k": (160, 160),
        f"{RESNET}.time_emb_proj": (320, 192),
        f"{RESNET}.conv1": (160, 160, 3, 3),
    }
    layers = {
        name: plain(rank, alpha, *shape)
        for (name, shape), rank, alpha in zip(shapes.items(), ranks, alphas, strict=True)
    }
    pipe = StableDiffusionPipeline.from_pretrained(postcard.FOLDER)
    found = read_adapter_file(save(tmp_path / "ranks.safetensors", layers), "lora")
    check_lora_fit(found, postcard.FOLDER, "postcard")
    lora_loading.load_lora(pipe, found, "ranks", "postcard")
    for name, tensors in layers.items():
        layer = pipe.unet.get_submodule(name)
        up, down = tensors["lora_up.weight"].flatten(1), tensors["lora_down.weight"].flatten(1)
        scale = float(tensors["alpha"]) / len(down) if "alpha" in tensors else 1.0
        expected = (up @ down * scale).reshape(layer.weight.shape)
        assert torch.allclose(layer.get_delta_weight("ranks"), expected, rtol=1e-4, atol=1e-5), name
