"""Precisions are settled when a model is read: nothing is cast while hooks move its weights."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions, load_target, memory, planning
from t2i_cli.backends.local.device import Device, list_devices
from t2i_cli.backends.local.memory import (
    GROUP_OFFLOAD,
    MODEL_OFFLOAD,
    TEXT_ENCODER_OFFLOAD,
    VAE_TILING,
    Measures,
)
from t2i_cli.events import Event, Preview
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import diffusers_folder
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.request_adapters import parse_embeddings, parse_loras
from tests import tiny_models
from tests.fakes import gpu
from tests.test_local_backend import ask, images, make, pixels, psnr

GB = 10**9


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL, whose VAE has `force_upcast` as the real one's."""
    folder = tiny_models.save("sdxl", tmp_path_factory.mktemp("offload") / "sdxl")
    assert diffusers_folder.component_config(folder, "vae")["force_upcast"]
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is not there."""
    gpu.install(monkeypatch, free=8 * GB)


def planned(monkeypatch: pytest.MonkeyPatch, *measures: str) -> None:
    """Have every plan take these measures."""
    monkeypatch.setattr(memory, "choose_measures", lambda *_, **__: measures)


def hooked(module: LibraryObject) -> bool:
    """Whether something moves the weights of a network, or of a part of it."""
    return any(
        hasattr(part, "_hf_hook") or getattr(getattr(part, "_diffusers_hook", None), "hooks", None)
        for part in module.modules()
    )


class Calls:
    """What is done to networks: "cast", "move" (with " under hooks" or not), or the offload."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch
        from diffusers import DiffusionPipeline

        self.made: list[str] = []
        to = torch.nn.Module.to

        def watched(
            module: LibraryObject, *args: LibraryObject, **kwargs: LibraryObject
        ) -> LibraryObject:
            given = [*args, *kwargs.values()]
            kinds = {"cast": torch.dtype, "move": (str, torch.device)}
            under = " under hooks" if hooked(module) else ""
            self.made += [
                kind + under
                for kind, types in kinds.items()
                if any(isinstance(value, types) for value in given)  # type: ignore[arg-type]
            ]
            return to(module, *args, **kwargs)

        monkeypatch.setattr(torch.nn.Module, "to", watched)
        hooking = {GROUP_OFFLOAD: "enable_group_offload", MODEL_OFFLOAD: "enable_model_cpu_offload"}
        for hooks, name in hooking.items():
            enable = getattr(DiffusionPipeline, name)

            def enabled(
                pipe: LibraryObject,
                *args: LibraryObject,
                enable: LibraryObject = enable,
                hooks: str = hooks,
                **kwargs: LibraryObject,
            ) -> None:
                enable(pipe, *args, **kwargs)
                self.made.append(hooks)

            monkeypatch.setattr(DiffusionPipeline, name, enabled)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    yield Calls(monkeypatch)


def run(folder: Path, dtype: str = "float16", steps: int = 3) -> GeneratedImage:
    backend = LocalBackend(LocalOptions(dtype=dtype))
    (image,) = images(make(backend, ask(backend, model=folder, width=32, height=32, steps=steps)))
    return image


@pytest.mark.parametrize("offload", ["", TEXT_ENCODER_OFFLOAD, MODEL_OFFLOAD, GROUP_OFFLOAD])
def test_nothing_is_cast_once_a_model_is_read(
    offload: str, sdxl: Path, fake: None, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(monkeypatch, *filter(None, [VAE_TILING, offload]))
    image = run(sdxl)
    assert not {call for call in calls.made if call.startswith("cast")}
    if offload in calls.made:  # installed by diffusers
        assert set(calls.made[: calls.made.index(offload)]) == {"move"}
    planned(monkeypatch)
    assert psnr(image, run(sdxl, dtype="float32")) >= 40


def test_adapters_act_under_hooks_and_leave_nothing(
    sdxl: Path, fake: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    random = np.random.default_rng(4)
    layers = {
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": 64,
        "unet.mid_block.attentions.0.transformer_blocks.1.attn1.to_v": 64,
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": 32,
        "text_encoder_2.text_model.encoder.layers.1.self_attn.out_proj": 32,
    }
    tensors = {
        f"{layer}.lora_{end}.weight": random.standard_normal(size).astype(np.float32) / 2
        for layer, width in layers.items()
        for end, size in (("A", (2, width)), ("B", (width, 2)))
    }
    save_file(tensors, str(tmp_path / "style.safetensors"))
    vectors = {name: random.standard_normal((2, 32)) for name in ("clip_l", "clip_g")}
    arrays = {name: each.astype(np.float32) for name, each in vectors.items()}
    save_file(arrays, str(tmp_path / "frost.safetensors"))
    style, frost = (str(tmp_path / f"{name}.safetensors") for name in ("style", "frost"))
    sets: list[dict[str, LibraryObject]] = [
        {},
        {"loras": parse_loras([style])},
        {"loras": parse_loras([f"{style}:0.5"]), "embeddings": parse_embeddings([frost])},
        {},
    ]

    def pictures(*measures: str, dtype: str = "float32") -> list[GeneratedImage]:
        planned(monkeypatch, *measures)
        backend = LocalBackend(LocalOptions(dtype=dtype))
        size = {"width": 32, "height": 32, "steps": 2}
        made = []
        for fields in sets:
            asked = ask(backend, model=sdxl, prompt="a house frost", **size, **fields)
            made += images(make(backend, asked))
        return made

    expected = pictures()
    assert len({pixels(image).tobytes() for image in expected}) == len(sets) - 1
    for measures in ((TEXT_ENCODER_OFFLOAD,), (MODEL_OFFLOAD,), (VAE_TILING, GROUP_OFFLOAD)):
        made = pictures(*measures)
        assert made[0].info.measures == made[-1].info.measures == measures
        assert min(map(psnr, made, expected)) >= 40, measures
        assert (pixels(made[0]) == pixels(made[-1])).all(), measures
    half = pictures(dtype="bfloat16")
    assert (pixels(half[0]) == pixels(half[-1])).all()
    assert len({pixels(image).tobytes() for image in half}) == len(sets) - 1


def test_the_vae_is_read_in_float32_alone(sdxl: Path, fake: None) -> None:
    import torch

    backend = LocalBackend(LocalOptions(dtype="float16"))
    make(backend, ask(backend, model=sdxl, width=32, height=32))
    assert backend._loaded
    networks = backend._loaded.pipe.components.items()
    found = {
        name: {weight.dtype for weight in network.parameters() if weight.is_floating_point()}
        for name, network in networks
        if isinstance(network, torch.nn.Module)
    }
    assert found.pop("vae") == {torch.float32}
    assert found and all(dtypes == {torch.float16} for dtypes in found.values())


def test_the_ladder_takes_hooks_off_before_it_moves(
    sdxl: Path, fake: None, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UNet2DConditionModel

    gpu.Failing(monkeypatch, UNet2DConditionModel, "forward", (1, 2, 3, 4))
    image = run(sdxl)
    ladder = (VAE_TILING, TEXT_ENCODER_OFFLOAD, MODEL_OFFLOAD, GROUP_OFFLOAD)
    assert image.info.measures == ladder
    assert not {call for call in calls.made if call.startswith("cast")}
    hooks = calls.made.index(GROUP_OFFLOAD)
    assert MODEL_OFFLOAD in calls.made[:hooks]
    # Model offload moves networks under its hooks; then these are off, and every one is moved.
    assert calls.made[hooks - 5 : hooks] == ["move"] * 5
    assert "move" not in calls.made[hooks:], "from here on only the hooks move weights"


def test_group_offload_that_fails_midway_is_put_on_anew(
    sdxl: Path, fake: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UNet2DConditionModel

    planned(monkeypatch, VAE_TILING, GROUP_OFFLOAD)
    failing = gpu.Failing(monkeypatch, UNet2DConditionModel, "enable_group_offload", (1,))
    backend = LocalBackend(LocalOptions(dtype="float16"))
    request = ask(backend, model=sdxl, width=32, height=32)
    assert not [o for o in make(backend, request) if isinstance(o, GeneratedImage)]
    (image,) = images(make(backend, request))
    assert failing.calls == 2
    planned(monkeypatch)
    assert psnr(image, run(sdxl)) >= 40


def test_previews_cast_nothing_under_hooks(
    fake: None, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stable Diffusion's VAE has `force_upcast` by its class, and its pipeline does not heed it."""
    import threading

    planned(monkeypatch, VAE_TILING, GROUP_OFFLOAD)
    backend = LocalBackend(LocalOptions(dtype="float16"))
    told: list[Event] = []
    asked = [ask(backend, steps=4)]
    images(list(backend.run(asked, told.append, threading.Event(), previews=[2])))
    assert sum(isinstance(event, Preview) for event in told) == 2
    assert not {call for call in calls.made if call.startswith("cast")}


def measured(folder: Path, dtype: str) -> tuple[int, memory.MemoryEstimate]:
    """Bytes of the VAE's weights, and what an image needs, as a plan for a GPU counts them."""
    place = Device(name="cuda:0", kind="cuda", label="GPU")
    aim = load_target.LoadTarget(
        spec=ModelSpec(name="it", folder=folder),
        device=place,
        dtype=dtype,
        folder=folder,
        sizes={},
    )
    aim = load_target._with_weight_sizes(aim, LocalOptions())
    return aim.sizes["vae"], planning._estimate(aim, 1024, 1024, dtype)


def test_a_plan_counts_the_vae_as_it_is_read(sdxl: Path, tmp_path: Path) -> None:
    import shutil

    half = shutil.copytree(sdxl, tmp_path / "half")
    tiny_models.edit_json(half / "vae/config.json", force_upcast=False)
    exact, exactly = measured(sdxl, "float16")
    rough, roughly = measured(half, "float16")
    assert exact == 2 * rough
    assert exactly.decode > 1.9 * roughly.decode - 3 * 1024**2 * 4
    assert exactly.tile > roughly.tile
    assert exactly.denoise == roughly.denoise
    assert measured(sdxl, "bfloat16")[0] == rough
    assert measured(sdxl, "float32") == measured(half, "float32")


@pytest.mark.parametrize(
    ("pipeline", "vae", "expected"),
    [
        ("StableDiffusionXLPipeline", {"force_upcast": True}, ("vae", None)),
        ("StableDiffusionXLPAGPipeline", {}, ("vae", None)),
        ("StableDiffusionXLPipeline", {"force_upcast": False}, (None, None)),
        ("KolorsPipeline", {}, ("vae", None)),
        ("AuraFlowPipeline", {"force_upcast": True}, ("vae", None)),
        ("StableDiffusionPipeline", {"force_upcast": True}, (None, None)),
        ("FluxPipeline", {"force_upcast": True}, (None, None)),
        ("BriaPipeline", {"shift_factor": None}, ("vae", "vae")),
        ("BriaPipeline", {"shift_factor": 0.1}, (None, None)),
        ("StableDiffusionXLPipeline", {"_class_name": "AutoencoderTiny"}, (None, None)),
    ],
)
def test_which_decoder_is_float32(
    pipeline: str,
    vae: dict[str, object],
    expected: tuple[str | None, str | None],
    tmp_path: Path,
) -> None:
    """In float16 and in bfloat16."""
    (tmp_path / "vae").mkdir()
    for file in ("model_index.json", "vae/config.json"):
        (tmp_path / file).write_text("{}")
    tiny_models.edit_json(tmp_path / "model_index.json", _class_name=pipeline)
    tiny_models.edit_json(tmp_path / "vae/config.json", **({"_class_name": "AutoencoderKL"} | vae))
    dtypes = ("float16", "bfloat16")
    assert tuple(diffusers_folder.float32_decoder(tmp_path, dtype) for dtype in dtypes) == expected
    assert diffusers_folder.float32_decoder(tmp_path, "float32") is None


@pytest.mark.gpu
@pytest.mark.parametrize("offload", [(MODEL_OFFLOAD,), (VAE_TILING, GROUP_OFFLOAD)])
def test_on_a_card_offload_makes_the_same_picture(
    offload: Measures, sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list_devices()[0].own_memory, "this test needs a GPU with memory of its own"
    planned(monkeypatch)
    plain = run(sdxl, steps=4)
    planned(monkeypatch, *offload)
    offloaded = run(sdxl, steps=4)
    assert offloaded.info.measures == offload
    assert psnr(plain, offloaded) >= 40
