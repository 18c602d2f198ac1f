"""LoRAs and embeddings of SDXL, SD 3 and FLUX in the layouts of each program, on tiny models."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.models.safetensors_header import read_header
from t2i_cli.request_adapters import parse_embeddings, parse_loras
from tests import tiny_models
from tests.test_local_backend import PROMPT, ask, images, make, pixels

RANK = 2
Arrays = dict[str, NDArray[np.float32]]
_ATTENTION = {
    "sdxl": (
        "unet",
        [
            f"{block}.attentions.0.transformer_blocks.{number}.{name}"
            for block in ("down_blocks.1", "mid_block", "up_blocks.0")
            for number in (0, 1)
            for name in ("attn1.to_q", "attn2.to_k", "attn2.to_out.0")
        ],
    ),
    "sd3": (
        "transformer",
        [f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_v", "add_k_proj")],
    ),
    "flux": (
        "transformer",
        [
            *(
                f"transformer_blocks.0.attn.{name}"
                for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj")
            ),
            "single_transformer_blocks.0.attn.to_q",
        ],
    ),
}
"""Layers of each family's denoiser, in diffusers' names."""
_ENCODER = [
    f"encoder.layers.{number}.{name}"
    for number in range(2)
    for name in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")
]


@dataclass
class Family:
    """A tiny model that is loaded, and a folder for LoRAs."""

    name: str
    folder: Path
    loras: Path
    backend: LocalBackend

    def picture(self, prompt: str = PROMPT, **adapters: str) -> NDArray[np.float64]:
        """The pixels of an image with these LoRAs or embeddings."""
        parse = {"loras": parse_loras, "embeddings": parse_embeddings}
        fields: dict[str, Any] = {name: parse[name]([text]) for name, text in adapters.items()}
        size = 64 if self.name == "flux" else 32
        asked = ask(
            self.backend,
            model=self.folder,
            prompt=prompt,
            steps=2,
            width=size,
            height=size,
            **fields,
        )
        (image,) = images(make(self.backend, asked))
        return pixels(image)

    def shape(self, part: str, layer: str) -> tuple[int, ...]:
        """The shape of a layer's weights."""
        [file] = (self.folder / part).glob("*.safetensors")
        tensors = read_header(file).tensors
        names = (f"{layer}.weight", f"text_model.{layer}.weight")
        return next(tensors[name].shape for name in names if name in tensors)

    def factors(self, parts: dict[str, list[str]]) -> dict[tuple[str, str], tuple[Any, Any]]:
        """Two factors for each layer of each part, with no alpha in them."""
        random = np.random.default_rng(3)
        found = {}
        for part, layers in parts.items():
            for layer in layers:
                rows, columns = self.shape(part, layer)
                found[part, layer] = (
                    (random.standard_normal((RANK, columns)) * 0.4).astype(np.float32),
                    (random.standard_normal((rows, RANK)) * 0.4).astype(np.float32),
                )
        return found

    def save(self, name: str, tensors: Arrays) -> str:
        """Write a file; its path."""
        path = self.loras / f"{name}.safetensors"
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, str(path))
        return str(path)


@pytest.fixture(scope="module")
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Family]:
    """A family's tiny model, loaded once."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_models.save(request.param, folder / "model")
    (folder / "loras").mkdir()
    options = LocalOptions(device="cpu", offline=True, lora_dir=str(folder / "loras"))
    backend = LocalBackend(options)
    yield Family(request.param, model, folder / "loras", backend)
    backend.close()


def diffusers_layout(factors: dict[tuple[str, str], tuple[Any, Any]]) -> Arrays:
    """As diffusers saves, with the alpha in the second factor."""
    return {
        f"{part}.{'text_model.' if 'text' in part else ''}{layer}.lora_{end}.weight": each
        for (part, layer), (down, up) in factors.items()
        for end, each in (("A", down), ("B", up / 2))
    }


def kohya_layout(factors: dict[tuple[str, str], tuple[Any, Any]], family: str) -> Arrays:
    """As kohya's sd-scripts save: its own names, and an alpha of half the rank."""
    found: Arrays = {}
    prefixes = {"text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_text_model_"}
    for (part, layer), (down, up) in factors.items():
        start = prefixes.get(part, "lora_unet_") + layer.replace(".", "_")
        found |= {f"{start}.lora_down.weight": down, f"{start}.lora_up.weight": up}
        found[f"{start}.alpha"] = np.array(RANK / 2, np.float32)
    return found


def close(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether two pictures are alike but for rounding, to which random networks are sensitive."""
    return bool(np.abs(one - other).mean() < 1)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"], indirect=True)
def test_layouts_act_alike_and_leave_nothing(family: Family) -> None:
    part, layers = _ATTENTION[family.name]
    encoders = ["text_encoder", "text_encoder_2"] if family.name == "sdxl" else ["text_encoder"]
    denoiser = family.factors({part: layers})
    whole = family.factors({part: layers} | dict.fromkeys(encoders, _ENCODER))
    files = {
        "denoiser": family.save("denoiser", diffusers_layout(denoiser)),
        "diffusers": family.save("diffusers", diffusers_layout(whole)),
    }
    if family.name == "sdxl":
        files["kohya"] = family.save("kohya", kohya_layout(whole, family.name))
    plain = family.picture()
    expected = family.picture(loras=files["diffusers"])
    # The layers of text encoders act beside those of the denoiser.
    assert not close(family.picture(loras=files["denoiser"]), plain)
    assert not close(family.picture(loras=files["denoiser"]), expected)
    if "kohya" in files:
        assert close(family.picture(loras=files["kohya"]), expected)
    folder = family.loras / "peft"
    folder.mkdir()
    peft = {
        f"base_model.model.{key.removeprefix(f'{part}.')}": value
        for key, value in diffusers_layout(denoiser).items()
    }
    peft = {key: value * 2 if "lora_B" in key else value for key, value in peft.items()}
    save_file(peft, str(folder / "adapter_model.safetensors"))
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK / 2}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert close(family.picture(loras=str(folder)), family.picture(loras=files["denoiser"]))
    assert (family.picture(loras=f"{files['diffusers']}:0") == plain).all()
    assert (family.picture() == plain).all()


@pytest.mark.parametrize("family", ["sdxl"], indirect=True)
def test_an_embedding_for_two_encoders_is_a_word(family: Family) -> None:
    random = np.random.default_rng(1)
    vectors = {
        name: random.standard_normal((2, 32)).astype(np.float32) for name in ("clip_l", "clip_g")
    }
    path = family.save("frost", vectors)
    prompt = f"{PROMPT} frost"
    plain = family.picture(prompt)
    assert not close(family.picture(prompt, embeddings=path), plain)
    assert (family.picture(prompt) == plain).all()


_FOREIGN: dict[str, dict[str, tuple[str, ...]]] = {
    "sdxl": {
        "input_blocks_3_1_transformer_blocks_0_attn1_to_q": (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        "middle_block_1_transformer_blocks_1_attn2_to_k": (
            "mid_block.attentions.0.transformer_blocks.1.attn2.to_k",
        ),
        "output_blocks_0_1_transformer_blocks_0_ff_net_2": (
            "up_blocks.0.attentions.0.transformer_blocks.0.ff.net.2",
        ),
    },
    "flux": {
        "double_blocks_0_img_attn_qkv": tuple(
            f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")
        ),
        "double_blocks_0_txt_attn_proj": ("transformer_blocks.0.attn.to_add_out",),
        "single_blocks_0_linear2": ("single_transformer_blocks.0.proj_out",),
    },
}
"""Layers by the names of the programs that a model comes from, and those in diffusers for them."""


@pytest.mark.parametrize("family", ["sdxl", "flux"], indirect=True)
def test_names_of_other_programs_are_the_same_layers(family: Family) -> None:
    part = "unet" if family.name == "sdxl" else "transformer"
    random = np.random.default_rng(6)

    def numbers(*shape: int) -> NDArray[np.float32]:
        return (random.standard_normal(shape) * 0.4).astype(np.float32)

    lora: Arrays = {}
    loha: Arrays = {}
    own: Arrays = {}
    for name, layers in _FOREIGN[family.name].items():
        rows, columns = family.shape(part, layers[0])
        one, other = ((numbers(rows * len(layers), RANK), numbers(RANK, columns)) for _ in "12")
        up = np.einsum("ik,il->ikl", one[0], other[0]).reshape(len(one[0]), -1) / 4
        down = np.einsum("kj,lj->klj", one[1], other[1]).reshape(-1, columns)
        start = f"lora_unet_{name}"
        lora |= {f"{start}.lora_down.weight": down, f"{start}.lora_up.weight": up}
        lora[f"{start}.alpha"] = np.array(RANK * RANK, np.float32)
        halves = zip(("w1_a", "w1_b", "w2_a", "w2_b"), (*one, *other), strict=True)
        loha |= {f"{start}.hada_{end}": each for end, each in halves}
        loha[f"{start}.alpha"] = np.array(RANK / 4, np.float32)
        for layer, block in zip(layers, np.split(up, len(layers)), strict=True):
            own |= {f"{part}.{layer}.lora_A.weight": down, f"{part}.{layer}.lora_B.weight": block}
    expected = family.picture(loras=family.save("own", own))
    assert not close(expected, family.picture())
    assert close(family.picture(loras=family.save("lora", lora)), expected)
    assert close(family.picture(loras=family.save("loha", loha)), expected)
    dotted = {
        "diffusion_model."
        + key.removeprefix("lora_unet_")
        .replace("blocks_0_", "blocks.0.")
        .replace("attn_", "attn."): value
        for key, value in lora.items()
    }
    if family.name == "flux":
        assert close(family.picture(loras=family.save("dotted", dotted)), expected)
        peft = {
            key.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): value
            for key, value in dotted.items()
            if not key.endswith("alpha")
        }
        assert close(family.picture(loras=family.save("dotted-peft", peft)), expected)
