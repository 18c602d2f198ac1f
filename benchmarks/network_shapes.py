"""The networks of the catalogue's models, built from their public configurations, without weights.

docs/model_shapes.json holds the shapes as the models' authors have published them, written down
without a network and not read again from the Hub; and what follows from them: the numbers of a
component's weights, `parameters`, with the buffers that its files hold (SD 3.5's positions), and
`largest`, those of its largest tensor, counted by building the networks.
"""

import inspect
import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from t2i_cli.backends.local import working_memory
from t2i_cli.backends.local.device import Device
from t2i_cli.models import sources
from t2i_cli.models.libraries import LibraryObject

SHAPES_FILE = Path(__file__).parent.parent / "docs" / "model_shapes.json"
TEXT_TOKENS = 512


def read_shapes() -> dict[str, Any]:
    """By model: its pipeline's class, and class, config and parameters of each component."""
    return dict(json.loads(SHAPES_FILE.read_text(encoding="utf-8")))


def save_configs(shape: Mapping[str, Any], folder: Path) -> Path:
    """Write a model's configs as a diffusers folder, which a memory plan can be made for."""
    index: dict[str, object] = {"_class_name": shape["pipeline"]}
    for name, part in shape["components"].items():
        index[name] = ["diffusers", part["class"]]
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(part["config"]))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def build_network(part: Mapping[str, Any], **changes: object) -> LibraryObject:
    """A network from its configuration, with torch's default dtype, on torch's default device."""
    import diffusers
    import transformers

    config = {k: v for k, v in part["config"].items() if k not in {"_class_name", "model_type"}}
    if known := getattr(diffusers, part["class"], None):
        return known(**(config | changes)).eval()
    model = getattr(transformers, part["class"])
    return model(model.config_class(**(config | changes))).eval()


def network_call(name: str, part: Mapping[str, Any], side: int) -> Callable[[LibraryObject], Any]:
    """What runs a network for one image of `side` pixels, with inputs of zeros."""
    import torch

    config, latent = part["config"], side // 8
    text, tokens = config.get("joint_attention_dim"), (side // 16) ** 2

    def run(network: LibraryObject) -> object:
        dtype = network.dtype

        def zeros(*shape: int) -> LibraryObject:
            return torch.zeros(*shape, dtype=dtype)

        match part["class"]:
            case "UNet2DConditionModel":
                added = {"text_embeds": zeros(1, 1280), "time_ids": zeros(1, 6)}
                conditions = {"added_cond_kwargs": added} if "addition_embed_type" in config else {}
                states = zeros(1, 77, config["cross_attention_dim"])
                image = zeros(1, 4, latent, latent)
                return network(image, torch.tensor(1), encoder_hidden_states=states, **conditions)
            case "SD3Transformer2DModel":
                image = zeros(1, 16, latent, latent)
                return network(image, zeros(1, 333, text), zeros(1, 2048), zeros(1))
            case "ZImageTransformer2DModel":
                image = zeros(config["in_channels"], 1, latent, latent)
                return network([image], zeros(1), [zeros(TEXT_TOKENS, config["cap_feat_dim"])])
            case "QwenImageTransformer2DModel":
                mask = torch.ones(1, TEXT_TOKENS, dtype=torch.int64)
                image, states = zeros(1, tokens, 64), zeros(1, TEXT_TOKENS, text)
                return network(image, states, mask, zeros(1), [[(1, side // 16, side // 16)]])
            case "FluxTransformer2DModel" | "Flux2Transformer2DModel":
                image, states = zeros(1, tokens, config["in_channels"]), zeros(1, TEXT_TOKENS, text)
                flux2 = "pooled_projection_dim" not in config
                ids = [zeros(*((1,) * flux2), n, 4 if flux2 else 3) for n in (tokens, TEXT_TOKENS)]
                pooled = [] if flux2 else [zeros(1, config["pooled_projection_dim"])]
                return network(image, states, *pooled, zeros(1), *ids)
        if working_memory.DECODERS[0] == name:
            frames = (1,) if "z_dim" in config else ()
            channels = config.get("latent_channels") or config["z_dim"]
            return network.decode(zeros(1, channels, *frames, latent, latent))
        length = 77 if part["class"].startswith("CLIP") else TEXT_TOKENS
        words = torch.ones(1, length, dtype=torch.int64)
        kept = {} if part["class"].startswith("T5") else {"output_hidden_states": True}
        return network(input_ids=words, attention_mask=words, **kept)

    return run


def planned_bytes(name: str, folder: Path, side: int, element: int) -> int:
    """What a plan counts for one forward pass of a component, without the weights."""
    latent = (side // 8) ** 2
    if name in {"unet", "transformer"}:
        planned = working_memory.denoiser_bytes(folder, latent, element, guided=False)
    elif name == "vae":
        planned = working_memory.decoder_bytes(folder, side**2, element)
    else:
        parts = sources.list_parts(folder)
        encoders = [part for part in parts if part.name == name]
        planned = working_memory.encoder_bytes(folder, encoders, element)
    assert planned is not None  # noqa: S101 - a benchmark
    return planned


def counted_bytes(network: LibraryObject, run: Callable[[LibraryObject], object]) -> int:
    """The most bytes of tensors alive at once in a forward pass, without the weights.

    Under FakeTensorMode nothing is computed, so that any size takes seconds on a CPU.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class AllocationCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Adds up the storages that come and go."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            weights = [*network.parameters(), *network.buffers()]
            self.known = dict.fromkeys((w.untyped_storage()._cdata for w in weights), 0)
            self.now = self.peak = 0

        def __torch_dispatch__(
            self,
            func: LibraryObject,
            types: LibraryObject,
            args: LibraryObject = (),
            kwargs: LibraryObject = None,
        ) -> LibraryObject:
            output = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(output):
                if isinstance(tensor, torch.Tensor):
                    self._add(tensor.untyped_storage())
            return output

        def _add(self, storage: LibraryObject) -> None:
            key = storage._cdata
            if key not in self.known:
                self.known[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._drop, key)

        def _drop(self, key: int) -> None:
            self.now -= self.known.pop(key, 0)

    with AllocationCount() as count, torch.no_grad():
        run(network)
    return int(count.peak)


@contextmanager
def default_dtype(name: str) -> Iterator[None]:
    """Within it, torch makes floats of that dtype."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def real_networks(
    place: Device, models: list[str] | None
) -> Iterator[tuple[str, int, str, int, int]]:
    """Component, side in pixels, dtype, and planned and measured bytes, for each model.

    On a card convolutions are stored as t2i loads them, and, as "contiguous", as they come; their
    kernels' workspaces differ. VAEs are decoded in float32, too, as those that are upcast.
    """
    import tempfile

    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from benchmarks.memory import peak_of

    for model, shape in read_shapes().items():
        if models and model not in models:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = save_configs(shape, Path(temporary))
            for name, part in shape["components"].items():
                if name == "safety_checker":
                    continue
                for side, dtype, order in _network_cases(name, place):
                    run = network_call(name, part, side)
                    if place.kind == "cpu":
                        with FakeTensorMode(), default_dtype(dtype):
                            measured = counted_bytes(_shallow(part), run)
                    else:
                        with torch.device(place.name), default_dtype(dtype), torch.no_grad():
                            network = _shallow(part)
                            if order is None and all(w.dim() < 5 for w in network.parameters()):
                                network.to(memory_format=torch.channels_last)
                            measured = peak_of(partial(run, network), place)
                            del network
                        torch.cuda.empty_cache()
                    element = torch.finfo(getattr(torch, dtype)).bits // 8
                    planned = planned_bytes(name, folder, side, element)
                    yield (
                        " ".join(filter(None, (model, name, order))),
                        side,
                        dtype,
                        planned,
                        measured,
                    )


def _network_cases(name: str, place: Device) -> Iterator[tuple[int, str, str | None]]:
    """Side, dtype and order of convolution weights (`None` for t2i's own) to measure."""
    sides = (512, 1024) if name in {"unet", "transformer", "vae"} else (1024,)
    convolves = name in {"unet", "vae"} and place.kind != "cpu"
    for side in sides:
        yield side, "bfloat16", None
        if convolves:
            yield side, "bfloat16", "contiguous"
            if name == "vae":
                yield side, "float32", None
                yield side, "float32", "contiguous"


def _shallow(part: Mapping[str, Any]) -> LibraryObject:
    """The network with a few blocks: as wide as the whole, whose activations are no larger."""
    import diffusers

    changes: dict[str, object] = {}
    cls = getattr(diffusers, part["class"], None)
    if "Transformer2DModel" in part["class"]:
        parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
        fewer = {"num_layers": 2, "num_single_layers": 2, "n_layers": 2, "n_refiner_layers": 1}
        changes = {name: count for name, count in fewer.items() if name in parameters}
        if "dual_attention_layers" in part["config"]:
            changes["dual_attention_layers"] = [0, 1]
    return build_network(part, **changes)
