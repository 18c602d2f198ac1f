"""Plans of the catalogue's models, from configs and sizes alone, against counted allocations."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import network_shapes
from t2i_cli.backends.local import device, load_target, memory, planning
from t2i_cli.backends.local.device import Device, MemoryInfo
from t2i_cli.backends.local.load_target import LoadTarget
from t2i_cli.backends.local.memory import GROUP_OFFLOAD, TEXT_ENCODER_OFFLOAD, VAE_TILING
from t2i_cli.backends.local.memory_plan import MemoryPlan
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.errors import OutOfMemoryError
from t2i_cli.models.catalog import MODELS
from t2i_cli.models.weights import ComponentWeights
from tests import factories

GPU = Device(name="cuda:0", kind="cuda", label="GPU")
CPU = Device(name="cpu", kind="cpu", label="CPU")
SHAPES = network_shapes.read_shapes()
GB = 10**9
HOST = 64 * GB


def target(name: str, folder: Path) -> LoadTarget:
    """A model of the catalogue as a GPU loads it, of which no weights are there."""
    parts = SHAPES[name]["components"]
    dtype = "float16" if "unet" in parts else "bfloat16"
    found = {
        part: ComponentWeights(elements={"F16": facts["parameters"]}, largest=facts["largest"])
        for part, facts in parts.items()
    }
    network_shapes.save_configs(SHAPES[name], folder)
    return LoadTarget(
        spec=MODELS[name],
        device=GPU,
        dtype=dtype,
        folder=folder,
        sizes=load_target.loaded_sizes(folder, dtype, found),
        layer=2 * max(facts.largest for facts in found.values()),
    )


def plan(
    aim: LoadTarget, free: int, side: int = 1024, options: LocalOptions | None = None
) -> MemoryPlan:
    found = MemoryInfo(free=free, total=free)
    return planning.plan_for_size(aim, (side, side), options or LocalOptions(), found, HOST)


def test_every_model_of_the_catalogue_has_its_shapes() -> None:
    assert set(SHAPES) == {name for name, spec in MODELS.items() if spec.repo}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_the_bytes_of_the_download(name: str) -> None:
    # Bytes of a number in the files that are downloaded, where they are not 2.
    stored = {
        "sd15": dict.fromkeys(SHAPES["sd15"]["components"], 4),
        "z-image-turbo": {"transformer": 4},
    }.get(name, {})
    size = sum(
        facts["parameters"] * stored.get(part, 2)
        for part, facts in SHAPES[name]["components"].items()
    )
    assert size == pytest.approx(MODELS[name].download_bytes, rel=0.03)


def test_sdxl_fits_into_8_gb_in_tiles(tmp_path: Path) -> None:
    found = plan(target("sdxl", tmp_path), 8 * GB)
    assert found.measures == (VAE_TILING, TEXT_ENCODER_OFFLOAD)
    assert found.vae_tile is not None
    assert 512 <= found.vae_tile < 1024
    assert found.peak_mib is not None
    assert found.peak_mib * memory.MIB < 8 * GB
    assert f"vae-tiling (of {found.vae_tile} px)" in found.text()


@pytest.mark.parametrize("free", [7, 7.5, 8, 9, 10])
def test_tiles_are_the_largest_that_fit(free: float, tmp_path: Path) -> None:
    aim = target("sdxl", tmp_path)
    found = plan(aim, int(free * GB))
    if VAE_TILING not in found.measures:
        assert found.vae_tile is None
        return
    needed = planning._estimate(aim, 1024, 1024, aim.dtype)
    fitting = [
        side
        for side in needed.tiles
        if needed.peak(found.measures, 1, GPU, side) <= 0.95 * free * GB
    ]
    assert found.vae_tile == max(fitting)


def test_float32_decodes_count_twice(tmp_path: Path) -> None:
    aim = target("sdxl", tmp_path)
    exact = planning._estimate(aim, 1024, 1024, "float16")
    half = replace(aim, folder=network_shapes.save_configs(SHAPES["sd15"], tmp_path / "sd15"))
    assert exact.decode > 1.9 * planning._estimate(half, 1024, 1024, "float16").decode


def test_flux_fits_into_16_gb_without_loss(tmp_path: Path) -> None:
    assert plan(target("flux-schnell", tmp_path), 16 * GB).measures == (GROUP_OFFLOAD,)


def planned_steps(
    aim: LoadTarget, free: int, steps: int, options: LocalOptions | None = None, host: int = HOST
) -> MemoryPlan:
    """The plan of images of 512 px that take so many steps."""
    found = MemoryInfo(free=free, total=free)
    return planning.plan_for_size(
        aim, (512, 512), options or LocalOptions(), found, host, steps=steps
    )


@pytest.mark.parametrize("batch", [1, 4])
def test_cuda_graphs_are_counted_where_they_fit_and_cost_no_measure(
    batch: int, tmp_path: Path
) -> None:
    aim, options = target("sd15", tmp_path), LocalOptions(batch_size=batch)
    few, many = (planned_steps(aim, 80 * GB, steps, options) for steps in (7, 8))
    assert few.cuda_graphs_mib is None
    assert many.cuda_graphs_mib
    assert few.peak_mib
    assert many.peak_mib
    assert many.working_mib
    assert few.working_mib
    held = many.cuda_graphs_mib
    assert many.peak_mib - few.peak_mib == pytest.approx(held, abs=1)
    assert many.working_mib - few.working_mib == pytest.approx(held, abs=1)
    assert f"; CUDA graphs: {held:,} MiB" in many.text()
    least = int((few.peak_mib + 1) * memory.MIB / 0.95)
    without = planned_steps(aim, least, 8, options)
    assert (without.measures, without.cuda_graphs_mib) == ((), 0)
    assert without.peak_mib == few.peak_mib
    assert "CUDA graphs: no memory left for them" in without.text()
    enough = planned_steps(aim, least + int(1.06 * (held + 1) * memory.MIB), 8, options)
    assert enough.cuda_graphs_mib == held


def test_cuda_graphs_are_counted_only_where_they_would_be_recorded(tmp_path: Path) -> None:
    aim = target("sd15", tmp_path / "sd15")
    assert planned_steps(aim, 80 * GB, 30).cuda_graphs_mib
    for other in (
        replace(aim, device=CPU),
        replace(aim, device=replace(GPU, kind="rocm")),
        replace(aim, quantize="int8"),
        target("flux-schnell", tmp_path / "flux"),
    ):
        assert planned_steps(other, 80 * GB, 30).cuda_graphs_mib is None
    offloaded = planned_steps(target("sdxl", tmp_path / "sdxl"), int(6.5 * GB), 30)
    assert set(offloaded.measures) & set(memory.OFFLOADS)
    assert offloaded.cuda_graphs_mib is None


def test_a_pass_is_no_larger_than_its_graphs_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aim = target("sd15", tmp_path)
    free = MemoryInfo(free=12 * GB, total=12 * GB)
    monkeypatch.setattr(device, "device_memory", lambda _: free)
    request = factories.request(model="sd15", width=512, height=512, steps=30)
    with_them, without = (
        planning.max_batch_size(aim, request, (), 0, graphs=graphs) for graphs in (True, False)
    )
    assert 1 < with_them < without


def test_low_memory_takes_small_tiles(tmp_path: Path) -> None:
    found = plan(target("sdxl", tmp_path), 80 * GB, options=LocalOptions(memory="low"))
    assert found.vae_tile is not None
    assert 256 < found.vae_tile <= 512


def test_what_the_configs_do_not_tell_is_unknown_and_refuses_nothing(tmp_path: Path) -> None:
    aim = target("flux-schnell", tmp_path)
    file = tmp_path / "transformer/config.json"
    file.write_text(json.dumps({"_class_name": "PRXTransformer2DModel", "in_channels": 64}))
    for free in (100, 16 * GB, 80 * GB):
        found = plan(aim, free)
        assert found.working_mib is None
        assert found.peak_mib is None
        assert "unknown memory to work with" in found.text()
    assert plan(aim, 80 * GB).measures == ()
    assert plan(aim, 16 * GB).measures == (GROUP_OFFLOAD,)


@pytest.mark.parametrize(
    "values",
    [
        {"num_attention_heads": 0, "attention_head_dim": 128},
        {"num_attention_heads": "many"},
        {"dim": [], "patch_size": 2},
        {"dim": -1},
    ],
)
def test_damaged_values_are_unknown_or_refused_by_name(
    values: dict[str, object], tmp_path: Path
) -> None:
    from t2i_cli.errors import ModelError

    aim = target("z-image-turbo", tmp_path)
    (tmp_path / "transformer/config.json").write_text(json.dumps(values))
    try:
        assert plan(aim, 80 * GB).working_mib is None
    except ModelError as error:
        assert "config.json is damaged" in error.message


def test_a_model_that_is_known_is_still_refused(tmp_path: Path) -> None:
    aim = replace(target("qwen-image", tmp_path), missing_bytes=1)
    with pytest.raises(OutOfMemoryError):
        plan(aim, GB)


def test_planned_is_what_networks_take_and_little_more() -> None:
    """A sample of `python -m benchmarks.memory --real`, counted without computing anything."""
    found = list(network_shapes.real_networks(CPU, ["flux2-klein", "sd15"]))
    assert {name for name, *_ in found} >= {"sd15 unet", "sd15 vae", "flux2-klein transformer"}
    for name, side, _dtype, planned, counted in found:
        assert planned >= counted, (name, side)
        if "text_encoder" not in name:
            assert planned <= 1.25 * counted, (name, side)


@pytest.mark.parametrize(
    ("model", "contiguous"), [("sdxl", 1.37), ("flux2-klein", 1.37), ("qwen-image", 1.0)]
)
def test_group_offload_decodes_without_channels_last(
    model: str, contiguous: float, tmp_path: Path
) -> None:
    """cuDNN's workspaces there, as measured on a card; a video VAE has them in its factor."""
    aim = target(model, tmp_path)
    needed = planning._estimate(aim, 1024, 1024, "float16")
    card = Device(name="cuda:0", kind="cuda", label="A card")
    decode = needed._phases((), 1, card, None)[2]
    grouped = needed._phases((GROUP_OFFLOAD,), 1, card, None)[2]
    assert grouped == int(decode * contiguous)
