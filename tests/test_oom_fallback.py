"""The order in which measures are taken when memory ran out, without a model."""

from types import SimpleNamespace
from typing import Any

import pytest

from t2i_cli import postcard
from t2i_cli.backends.local import device, memory
from t2i_cli.backends.local.device import Device, DeviceKind
from t2i_cli.backends.local.oom_fallback import apply_next_measure
from t2i_cli.errors import OutOfMemoryError

TILING = SimpleNamespace(enable_tiling=lambda: None, use_tiling=False)


MOVES = [memory.MODEL_OFFLOAD, memory.GROUP_OFFLOAD]


class Loaded:
    """A pipeline on a device, where a measure in `fails` meets that error."""

    def __init__(
        self,
        kind: DeviceKind,
        *,
        vae: object = TILING,
        offload: str | None = "text_encoder->unet",
        encoder: object = None,
        fails: dict[str, Exception] | None = None,
    ) -> None:
        self.device = Device(name=f"{kind}:0", kind=kind, label="")
        self.pipe = SimpleNamespace(
            vae=vae, movq=None, model_cpu_offload_seq=offload, unet=object(), text_encoder=encoder
        )
        self.measures: list[str] = []
        self.quantize: str | None = None
        self.folder = postcard.FOLDER
        self.batch_limit: int | None = None
        self.reasons: set[str] = set()
        self._fails = fails or {}

    def record_measure(self, name: str, reason: str) -> None:
        self.measures.append(name)
        self.reasons.add(reason)

    def place(self, measures: tuple[str, ...], reason: str) -> None:
        for name in measures:
            self.record_measure(name, reason)
            if name in self._fails:
                raise self._fails[name]


def apply(loaded: Any, batch: int = 1, slicing: bool | None = None) -> None:  # noqa: ANN401
    apply_next_measure(loaded, batch=batch, slicing=slicing)


@pytest.fixture(autouse=True)
def cleared(monkeypatch: pytest.MonkeyPatch) -> list[Device]:
    """The devices whose cache was given back; memory has run out where MemoryError is raised."""
    found: list[Device] = []
    monkeypatch.setattr(device, "clear_cache", found.append)
    monkeypatch.setattr(device, "is_out_of_memory", lambda error: isinstance(error, MemoryError))
    return found


@pytest.mark.parametrize(("batch", "half"), [(2, 1), (3, 1), (8, 4), (9, 4)])
def test_a_pass_of_several_images_is_halved_first(
    batch: int, half: int, cleared: list[Device]
) -> None:
    loaded = Loaded("cuda")
    apply(loaded, batch)
    assert (loaded.batch_limit, loaded.measures) == (half, [f"batch-size-{half}"])
    assert loaded.reasons == {"cuda:0 ran out of memory"}
    assert cleared == [loaded.device]


def taken(loaded: Loaded, slicing: bool | None = None) -> list[str]:
    """Every measure, one at a time, until there is none left."""
    while True:
        before = list(loaded.measures)
        try:
            apply(loaded, slicing=slicing)
        except OutOfMemoryError:
            return before
        assert len(loaded.measures) == len(before) + 1, "one measure at a time"


@pytest.mark.parametrize(
    ("kind", "slicing", "changes", "expected"),
    [
        ("cuda", None, {}, [memory.VAE_TILING, memory.MODEL_OFFLOAD, memory.GROUP_OFFLOAD]),
        ("cuda", True, {"offload": None}, [memory.VAE_TILING, memory.GROUP_OFFLOAD]),
        (
            "cuda",
            None,
            {"encoder": object()},
            [
                memory.VAE_TILING,
                memory.TEXT_ENCODER_OFFLOAD,
                memory.MODEL_OFFLOAD,
                memory.GROUP_OFFLOAD,
            ],
        ),
        ("cuda", None, {"vae": SimpleNamespace(enable_tiling=None)}, MOVES),
        ("cpu", None, {}, [memory.VAE_TILING]),
        ("cpu", None, {"vae": None}, []),
        ("mps", None, {}, [memory.VAE_TILING, memory.ATTENTION_SLICING]),
        ("mps", True, {}, [memory.VAE_TILING, memory.ATTENTION_SLICING]),
        ("mps", False, {}, [memory.VAE_TILING]),
    ],
)
def test_single_images_take_the_cheapest_measure_that_can_help(
    kind: DeviceKind, slicing: bool | None, changes: dict[str, Any], expected: list[str]
) -> None:
    loaded = Loaded(kind, **changes)
    assert taken(loaded, slicing) == expected
    assert loaded.batch_limit is None
    assert loaded.reasons <= {f"{kind}:0 ran out of memory"}


def test_nothing_helps_once_groups_are_offloaded() -> None:
    loaded = Loaded("cuda")
    loaded.measures = [memory.VAE_TILING, memory.GROUP_OFFLOAD]
    with pytest.raises(OutOfMemoryError) as caught:
        apply(loaded)
    assert caught.value.message == (
        "cuda:0 ran out of memory, whatever was tried (vae-tiling, group-offload)."
    )
    assert caught.value.hint == "A smaller --size needs less, and so does a smaller model."


def test_where_there_is_nothing_to_try_the_error_says_so() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        apply(Loaded("cpu", vae=None))
    assert caught.value.message == (
        "cpu:0 ran out of memory, whatever was tried (there was nothing to try)."
    )


def test_a_measure_that_runs_out_itself_gives_way_to_the_next(cleared: list[Device]) -> None:
    loaded = Loaded("cuda", fails={memory.VAE_TILING: MemoryError()})
    apply(loaded)
    assert loaded.measures == [memory.VAE_TILING, memory.MODEL_OFFLOAD]
    assert cleared == [loaded.device] * 2


def test_another_error_of_a_measure_comes_out() -> None:
    loaded = Loaded("cuda", fails={memory.VAE_TILING: ZeroDivisionError()})
    with pytest.raises(ZeroDivisionError):
        apply(loaded)
    assert loaded.measures == [memory.VAE_TILING]
