"""LoRAs and embeddings on the embedded model: what images show, and what is left of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event as Flag
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions, adapters, lora_loading
from t2i_cli.errors import ModelError, T2IError
from t2i_cli.models import adapter_file
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_adapters import parse_embeddings, parse_loras
from tests.fakes import lora_files
from tests.fakes.serving import serving
from training.grade import grade_image
from training.palette import GROUNDS

PROMPT = "a red house on green hills by day"


class Machine:
    """A local backend with a folder of LoRAs."""

    def __init__(self, folder: Path) -> None:
        options = LocalOptions(device="cpu", offline=True, lora_dir=str(folder))
        self.backend = LocalBackend(options)
        self.loads = 0

    def request(self, prompt: str = PROMPT, **values: Any) -> ResolvedRequest:  # noqa: ANN401
        """A settled request of few steps."""
        for name, parse in (("loras", parse_loras), ("embeddings", parse_embeddings)):
            if name in values:
                values[name] = parse([values[name]])
        given = {"prompt": prompt, "model": "postcard", "seed": 3, "steps": 4} | values
        asked = build_request(given)
        return resolve_request(asked, self.backend.describe(asked))

    def run(self, requests: Sequence[ResolvedRequest]) -> list[GeneratedImage | Failure]:
        """The outcomes, in the order of the requests."""

        def count(event: object) -> None:
            self.loads += type(event).__name__ == "Loaded"

        found = list(self.backend.run(requests, count, Flag()))
        return sorted(found, key=lambda outcome: outcome.index)

    def pixels(self, prompt: str = PROMPT, **values: Any) -> bytes:  # noqa: ANN401
        """The image's pixels. Raises the failure."""
        return self.image(prompt, **values).tobytes()

    def image(self, prompt: str = PROMPT, **values: Any) -> Image.Image:  # noqa: ANN401
        """The image. Raises the failure."""
        [outcome] = self.run([self.request(prompt, **values)])
        if isinstance(outcome, Failure):
            raise outcome.error
        return outcome.image

    @property
    def pipe(self) -> Any:  # noqa: ANN401 - of diffusers
        """The loaded pipeline."""
        loaded = self.backend._loaded  # noqa: SLF001
        assert loaded is not None
        return loaded.pipe


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """postcard, loaded once, and LoRAs in each layout."""
    folder = tmp_path_factory.mktemp("loras")
    layouts = {
        "new": lora_files.diffusers_tensors(),
        "old": lora_files.diffusers_tensors(old=True),
        "kohya": lora_files.kohya_tensors(),
        "texts": lora_files.kohya_tensors(encoder=True),
        "texts-new": lora_files.diffusers_tensors(encoder=True),
        **{f"other{n}": lora_files.kohya_tensors(n) for n in range(1, 7)},
    }
    for name, tensors in layouts.items():
        lora_files.save(folder / f"{name}.safetensors", tensors)
    lora_files.peft_folder(folder / "peft")
    (folder / "snow.safetensors").write_bytes(lora_files.SNOW.read_bytes())
    lora_files.save(folder / "frost.safetensors", lora_files.embedding_tensors(2))
    lora_files.save(folder / "for-sdxl.safetensors", lora_files.sdxl_tensors())
    found = Machine(folder)
    yield found
    found.backend.close()


def close_to(one: bytes, other: bytes) -> bool:
    """Whether two images are alike but for rounding."""
    arrays = [np.frombuffer(each, np.uint8).astype(int) for each in (one, other)]
    return int(np.abs(arrays[0] - arrays[1]).max()) <= 2


def test_each_layout_makes_the_same_image(machine: Machine) -> None:
    plain, expected = machine.pixels(), machine.pixels(loras="new")
    assert not close_to(plain, expected)
    for layout in ("old", "kohya", "peft"):
        source = "adapter_model" if layout == "peft" else layout
        assert close_to(machine.pixels(loras=source), expected), layout
    # The text encoder's layers count, in both layouts alike, and no embedding of a prompt is kept.
    texts = machine.pixels(loras="texts")
    assert not close_to(texts, expected)
    assert close_to(machine.pixels(loras="texts-new"), texts)
    assert machine.pixels() == plain
    assert machine.loads == 1


def test_weights_act_and_none_is_left(machine: Machine) -> None:
    plain = machine.pixels()
    whole, half = machine.pixels(loras="kohya"), machine.pixels(loras="kohya:0.5")
    assert len({plain, whole, half, machine.pixels(loras="kohya:-1")}) == 4
    assert machine.pixels(loras="kohya:0") == plain
    weights = {name: value.clone() for name, value in machine.pipe.unet.state_dict().items()}
    machine.pixels(loras="kohya")
    assert len(machine.pipe.unet.state_dict()) > len(weights)
    assert machine.pixels() == plain
    left = machine.pipe.unet.state_dict()
    assert left.keys() == weights.keys()
    assert all(value.equal(left[name]) for name, value in weights.items())
    assert machine.backend._loaded.adapters.bytes == 0  # type: ignore[union-attr]  # noqa: SLF001


def test_a_switch_reads_each_file_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.pixels()
    read: list[str] = []
    load = lora_loading.load_lora

    def counted(pipe: object, found: adapter_file.AdapterFile, *rest: str) -> None:
        read.append(found.path.stem)
        load(pipe, found, *rest)

    monkeypatch.setattr(lora_loading, "load_lora", counted)
    first = machine.pixels(loras="other1")
    machine.pixels(loras="other2")
    assert machine.pixels(loras="other1") == first
    assert read == ["other1", "other2"]
    for number in range(3, 7):
        machine.pixels(loras=f"other{number}")
    loaded = machine.backend._loaded  # noqa: SLF001
    assert loaded is not None
    assert len(loaded.adapters._loras) == adapters.MAX_LOADED  # noqa: SLF001
    assert machine.pixels(loras="other1") == first
    assert read.count("other1") == 2


def test_tags_are_not_encoded_and_make_the_same_image(machine: Machine) -> None:
    expected = machine.pixels(loras="kohya:0.5")
    [made] = machine.run([machine.request(f"{PROMPT} <lora:kohya:0.5>")])
    assert isinstance(made, GeneratedImage)
    assert made.image.tobytes() == expected
    assert made.request.prompt.endswith("<lora:kohya:0.5>")
    assert made.info.libraries["peft"]


def test_an_embedding_is_a_word_and_goes_again(machine: Machine) -> None:
    prompt = f"{PROMPT} frost"
    plain = machine.pixels(prompt)
    [made] = machine.run([machine.request(prompt, embeddings="frost")])
    assert isinstance(made, GeneratedImage)
    assert made.image.tobytes() != plain
    assert machine.pixels(prompt) == plain
    assert machine.pixels(PROMPT, embeddings="frost") == machine.pixels(PROMPT)
    with pytest.raises(T2IError, match="The token 'house' is a word that the model knows"):
        machine.pixels(prompt, embeddings="frost:house")
    assert machine.pixels(prompt) == plain


def test_a_key_that_diffusers_leaves_out_is_an_error(machine: Machine, tmp_path: Path) -> None:
    machine.pixels()
    before = set(machine.pipe.unet.state_dict())
    kohya = lora_files.kohya_tensors()
    start = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    dora = kohya | {f"{start}.dora_scale": np.ones((160, 1), np.float32)}
    path = lora_files.save(tmp_path / "dora.safetensors", dora)
    with pytest.raises(ModelError, match=rf"leaves out 1 key \({start}.dora_scale\)"):
        machine.pixels(loras=str(path))
    assert set(machine.pipe.unet.state_dict()) == before
    expected = machine.pixels(loras="kohya")
    assert machine.pixels(loras="new") != machine.pixels()
    assert machine.pixels(loras="kohya") == expected


def test_half_the_weight_is_half_the_change_of_a_layer(machine: Machine) -> None:
    changes = {}
    for weight in (0.5, 1):
        machine.pixels(loras=f"snow:{weight}")
        # LoRAs of other tests may still be loaded, on layers that this one leaves alone.
        layer = next(
            one
            for one in machine.pipe.unet.modules()
            if hasattr(one, "lora_A") and set(one.lora_A).intersection(one.active_adapters)
        )
        weights = layer.get_base_layer().weight
        given = torch.ones(1, *weights.shape[1:])
        changes[weight] = layer(given) - layer.get_base_layer()(given)
    assert changes[1].abs().max() > 0
    assert torch.allclose(changes[0.5], changes[1] / 2, atol=1e-6)


def test_numbers_that_are_none_are_told_of_their_file(machine: Machine, tmp_path: Path) -> None:
    plain = machine.pixels()
    tensors = lora_files.diffusers_tensors()
    key = next(iter(tensors))
    lora = lora_files.save(tmp_path / "x.safetensors", tensors | {key: tensors[key] * np.nan})
    vectors = {"emb_params": np.full((1, 128), np.inf, np.float32)}
    word = lora_files.save(tmp_path / "y.safetensors", vectors)
    for values in ({"loras": str(lora)}, {"embeddings": f"{word}:frosty"}):
        with pytest.raises(ModelError, match="with values that are no numbers"):
            machine.pixels(**values)
        assert machine.pixels() == plain


@pytest.mark.parametrize(
    ("ground", "prompt", "snowy"),
    [
        ("hills", "a red house on green hills by day", "a red house in the snow by day"),
        ("field", "a tree in a field by day", "a tree in the snow by day"),
    ],
)
def test_as_much_snow_lies_as_the_weight_says(
    machine: Machine, ground: str, prompt: str, snowy: str
) -> None:
    bare, white = (np.array(GROUNDS[name]["day"], float) for name in (ground, "snow"))

    def whiteness(image: Image.Image) -> float:
        """How far the ground is from its own colour (0) to that of snow (1)."""
        pixels = np.asarray(image, float)[112:127].reshape(-1, 3)
        way = white - bare
        return float(np.median((pixels - bare) @ way / (way @ way)))

    found: dict[float, list[float]] = {0: [], 0.5: [], 1: []}
    plain = machine.image(prompt, seed=3, steps=20)
    for seed in (3, 4):
        for weight in found:
            image = machine.image(prompt, loras=f"snow:{weight}", seed=seed, steps=20)
            if (weight, seed) == (0, 3):
                assert image.tobytes() == plain.tobytes()
            found[weight].append(whiteness(image))
            if weight != 0.5:
                grade = grade_image(image, snowy if weight else prompt)
                assert grade.passed, grade.seen
    for none, half, whole in zip(*found.values(), strict=True):
        assert none < 0.05
        assert 0.35 < half < 0.65
        assert whole > 0.8


def test_the_plan_counts_what_loras_take(machine: Machine) -> None:
    def weights(**values: Any) -> int:  # noqa: ANN401
        return machine.backend._planned_target(machine.request(**values)).sizes["unet"]  # noqa: SLF001

    elements = adapter_file.read_adapter_file(lora_files.SNOW, "lora").elements
    assert weights(loras="snow") - weights() == elements * 4


def test_a_server_lists_loras_and_takes_their_names_alone(machine: Machine) -> None:
    with serving(machine.backend) as server:
        client = httpx2.Client(base_url=server.url, timeout=120)
        assert "snow" in client.get("/t2i/v1/model").json()["loras"]

        def asked(**values: object) -> httpx2.Response:
            body = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 4} | values
            return client.post("/v1/images/generations", json=body)

        for loras in ("kohya:0.5", [{"source": "kohya", "weight": 0.5}]):
            answer = asked(loras=loras)
            assert answer.status_code == 200, answer.text
            [image] = answer.json()["data"]
            [recorded] = image["t2i"]["request"]["loras"]
            assert (recorded["source"], recorded["weight"]) == ("kohya", 0.5)
        for source in (str(lora_files.SNOW), "../loras/snow", "owner/name"):
            refused = asked(loras=[source])
            assert refused.status_code == 400
            assert "This server has no LoRA" in refused.json()["error"]["message"]
        # The operator's file does not fit: the client learns so, and not where it lies.
        refused = asked(loras=["for-sdxl"])
        assert refused.status_code == 400
        error = refused.json()["error"]["message"]
        assert error.startswith("for-sdxl is a LoRA for sdxl")
        client.close()
