"""On a card, every memory measure makes the picture that the model makes without it.

`T2I_TEST_DEVICE=cpu pytest -m gpu tests/test_gpu_matrix.py` tries the tests on the fake GPU: what
hooks do with streams, and half precision in a card's kernels, shows on a card alone.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import memory
from t2i_cli.backends.local.device import Device
from t2i_cli.backends.local.memory import (
    ATTENTION_SLICING,
    GROUP_OFFLOAD,
    MODEL_OFFLOAD,
    VAE_TILING,
    Measures,
)
from t2i_cli.models import catalog
from tests import tiny_models
from tests.gpu_place import place as place
from tests.gpu_place import run_on
from tests.test_local_backend import pixels, psnr
from tests.test_local_families import CLASSES
from tests.test_local_offload import planned

UNETS = {"sd", "sdxl"}
PIPELINES = {spec.pipeline for spec in catalog.MODELS.values()}
FAMILIES = [name for name, cls in CLASSES.items() if cls in PIPELINES]
WIDE = "flux-3072"
"""FLUX.1 at its own width, one block of each kind: 1 GB in half precision."""
DTYPES = ("float16", "bfloat16", "float32")
CARD = Device(name="cuda:0", kind="cuda", label="A card")
Family = Callable[[str, str], Path]
Plain = Callable[[str, str], GeneratedImage]


def measure_sets(family: str) -> Iterator[Measures]:
    """Every set that a plan for a card can name, each measure alone, and every pair within a set.

    A user may ask for attention slicing beside each of them, where the denoiser has it.
    """
    found = {measures for measures in memory.candidate_measures(CARD) if measures}
    found |= {pair for measures in found for pair in itertools.combinations(measures, 2)}
    found |= {(measure,) for measures in found for measure in measures}
    if family in UNETS:
        found |= {(*measures, ATTENTION_SLICING) for measures in found}
    yield from sorted(found)


def cases() -> Iterator[tuple[str, str, Measures]]:
    """Family, dtype and measures."""
    for family in [*FAMILIES, WIDE]:
        for dtype in DTYPES:
            for measures in measure_sets(family):
                yield family, dtype, measures


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The folder of a family's tiny pipeline, made once."""
    root = tmp_path_factory.mktemp("matrix")

    def folder(name: str, dtype: str) -> Path:
        if name == "sd":
            return Path("postcard")
        path = root / name
        return path if path.exists() else tiny_models.save(name, path)

    return folder


@pytest.fixture(scope="module")
def made() -> dict[tuple[str, str, str], GeneratedImage]:
    """Pictures without measures, each made once."""
    return {}


def picture(place: Device, folder: Path, dtype: str) -> GeneratedImage:
    return run_on(place, folder, dtype=dtype, width=64, height=64, steps=3)


def check_measures(
    place: Device,
    folder: Path,
    dtype: str,
    measures: Measures,
    monkeypatch: pytest.MonkeyPatch,
    made: dict[tuple[str, str, str], GeneratedImage],
) -> None:
    """The picture with the measures is the one without; with more than tiles, that of tiles.

    Tiles change the picture themselves: each is normalised alone, which a trained VAE hardly shows
    and one with random weights does. Whether they are put together right shows in both.
    """

    def reference(*less: str) -> GeneratedImage:
        key = (place.name, str(folder), f"{dtype} {less}")
        if key not in made:
            planned(monkeypatch, *less)
            made[key] = picture(place, folder, dtype)
            assert made[key].info.measures == less
        return made[key]

    tiled = VAE_TILING in measures and len(measures) > 1
    plain = reference(*(VAE_TILING,) if tiled else ())
    planned(monkeypatch, *measures)
    found = picture(place, folder, dtype)
    assert set(measures) == set(found.info.measures)
    assert found.info.dtype == dtype
    trained = folder == Path("postcard")
    assert psnr(plain, found) >= (40 if trained or measures != (VAE_TILING,) else 20)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "dtype", "measures"),
    list(cases()),
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else value,
)
def test_a_measure_makes_the_picture(
    name: str,
    dtype: str,
    measures: Measures,
    place: Device,
    family: Family,
    monkeypatch: pytest.MonkeyPatch,
    made: dict[tuple[str, str, str], GeneratedImage],
) -> None:
    check_measures(place, family(name, dtype), dtype, measures, monkeypatch, made)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*FAMILIES, WIDE])
def test_offloads_compute_the_same(
    name: str, place: Device, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: only the time at which weights come to the card differs."""
    found = []
    for offload in (MODEL_OFFLOAD, GROUP_OFFLOAD):
        planned(monkeypatch, VAE_TILING, offload)
        found.append(pixels(picture(place, family(name, "bfloat16"), "bfloat16")))
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize(
    ("name", "measures"),
    [
        ("sdxl", (VAE_TILING, GROUP_OFFLOAD)),
        ("sdxl", (MODEL_OFFLOAD, ATTENTION_SLICING)),
        ("z-image", (VAE_TILING, MODEL_OFFLOAD)),
    ],
)
def test_the_matrix_itself_runs_without_a_card(
    name: str,
    measures: Measures,
    place: Device,
    family: Family,
    monkeypatch: pytest.MonkeyPatch,
    made: dict[tuple[str, str, str], GeneratedImage],
) -> None:
    check_measures(place, family(name, "bfloat16"), "bfloat16", measures, monkeypatch, made)


def test_the_matrix_names_every_family_and_measure() -> None:
    named = list(cases())
    assert {"sd", "sdxl", "sd3", "flux", "flux2-klein", "z-image", "qwen-image", WIDE} == {
        family for family, _, _ in named
    }
    assert {CLASSES[family] for family in FAMILIES} == PIPELINES
    for planned_set in memory.candidate_measures(CARD):
        assert not planned_set or ("flux", "bfloat16", planned_set) in named
    assert ("sdxl", "float16", (VAE_TILING, GROUP_OFFLOAD, ATTENTION_SLICING)) in named
