"""Estimate the memory that a model needs, and choose the measures with which it fits."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from t2i_cli.backends.local import vae_tiling, working_memory
from t2i_cli.backends.local.device import Device
from t2i_cli.backends.local.working_memory import is_decoder, is_text_encoder
from t2i_cli.models import diffusers_folder, sources

VAE_SLICING = "vae-slicing"
VAE_TILING = "vae-tiling"
ATTENTION_SLICING = "attention-slicing"
TEXT_ENCODER_OFFLOAD = "text-encoder-offload"
MODEL_OFFLOAD = "model-offload"
GROUP_OFFLOAD = "group-offload"
OFFLOADS = (GROUP_OFFLOAD, MODEL_OFFLOAD, TEXT_ENCODER_OFFLOAD)
"""The measures that keep weights on the host, the strongest first; one of them acts at a time."""
Measures = tuple[str, ...]

MIB = 2**20
_USABLE_FRACTION = 0.95
"""Fraction of the free memory that a plan uses; the rest is lost to fragmentation."""
_WORKSPACE = 64 * MIB
"""Bytes that cuBLAS and cuDNN allocate through torch on a GPU."""
_CPU_WORKSPACE = MIB
"""Bytes of positions, masks and schedules, which count beside small networks only."""
_LAYERS = 2
"""Layers that group offload holds on the device at once: the one at work and the next."""
_LARGEST_LAYER = 16
"""A layer whose size is not known yet has at most 1/16 of the largest network's bytes."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that images of one size need: `weights` by component, the other fields per image.

    `attention` is the largest attention matrix, stored only without a fused SDPA kernel; `decode`
    is for decoding the whole image, `tile` for the smallest tiles, `tiles` for tiles by their side
    in pixels; `encode` is for one text; `layer` is the largest layer's weights; `graphs` is what
    recordings of CUDA graphs hold at all times; `contiguous` is how many times as much the decode
    takes on a GPU under group offload, which stores no weights channels-last. What the configs do
    not tell is in `unknown`, and counts as 0.
    """

    weights: Mapping[str, int]
    denoise: int
    attention: int
    decode: int
    tile: int
    tiles: Mapping[int, int] = field(default_factory=dict)
    encode: int = 0
    workspace: int = 0
    layer: int | None = None
    graphs: int = 0
    contiguous: float = 1.0
    unknown: tuple[str, ...] = ()

    def working(
        self, measures: Measures, batch: int, device: Device, tile: int | None = None
    ) -> int:
        """Peak bytes in addition to the weights; `tile` is the tiles' side, else the smallest."""
        phases = self._phases(measures, batch, device, tile)
        return max(phases) + self._workspace(device)

    def peak(self, measures: Measures, batch: int, device: Device, tile: int | None = None) -> int:
        """Peak bytes on the device: of encoding texts, denoising, and decoding."""
        phases = self._phases(measures, batch, device, tile)
        resident = self._resident(measures)
        return max(map(sum, zip(phases, resident, strict=True))) + self._workspace(device)

    def largest_tile(
        self, measures: Measures, batch: int, device: Device, usable: float, least: int = 0
    ) -> int | None:
        """The largest tiles, of at least `least` pixels, that fit into `usable` bytes."""
        sides = [side for side in self.tiles if side >= least]
        fitting = (s for s in sides if self.peak(measures, batch, device, s) <= usable)
        return max(fitting, default=None)

    def _phases(
        self, measures: Measures, batch: int, device: Device, tile: int | None
    ) -> tuple[int, int, int]:
        """Working bytes of encoding, denoising and decoding."""
        attention = 0 if device.fused_attention or ATTENTION_SLICING in measures else self.attention
        sliced = batch == 1 or VAE_SLICING in measures
        decode = self.decode if sliced else self.decode * batch
        if VAE_TILING in measures:
            decode = self.tiles.get(tile or 0, self.tile)
        if GROUP_OFFLOAD in measures and device.own_memory:
            decode = int(decode * self.contiguous)
        graphs = self.graphs * batch
        return self.encode + graphs, (self.denoise + attention) * batch + graphs, decode + graphs

    def _resident(self, measures: Measures) -> tuple[int, int, int]:
        """Bytes of weights on the device while texts are encoded, at denoising and decoding."""
        total = sum(self.weights.values())
        texts, decoders = map(self._bytes_of, (is_text_encoder, is_decoder))
        if GROUP_OFFLOAD in measures:
            largest = max(self.weights.values(), default=0)
            layer = largest // _LARGEST_LAYER if self.layer is None else self.layer
            return (_LAYERS * layer,) * 3
        if MODEL_OFFLOAD in measures:
            rest = {n: b for n, b in self.weights.items() if not is_text_encoder(n)}
            stays = rest.pop("safety_checker", 0)  # diffusers leaves it on the device
            rest = {name: size for name, size in rest.items() if not is_decoder(name)}
            return texts + stays, max(rest.values(), default=0) + stays, decoders + stays
        if TEXT_ENCODER_OFFLOAD in measures:
            return total, total - texts, total - texts
        return (total,) * 3

    def _bytes_of(self, belongs: Callable[[str], bool]) -> int:
        return sum(size for name, size in self.weights.items() if belongs(name))

    def _workspace(self, device: Device) -> int:
        return self.workspace if device.own_memory else min(self.workspace, _CPU_WORKSPACE)


def estimate_memory(
    folder: Path,
    weights: Mapping[str, int],
    width: int,
    height: int,
    element: int,
    *,
    vae_element: int | None = None,
    guided: bool = True,
    layer: int | None = None,
) -> MemoryEstimate:
    """The memory for images of `width` x `height` pixels, with guidance or without.

    `weights` are bytes by component; `element` is the bytes per number, `vae_element` that of the
    VAE if it differs; `layer` is the bytes of the largest layer, where known.
    """
    vae_bytes = vae_element or element
    scale = diffusers_folder.vae_scale_factor(folder)
    pixels = width * height
    latent = pixels // scale**2
    texts = [c for c in sources.list_parts(folder) if is_text_encoder(c.name)]
    found = {
        "denoise": working_memory.denoiser_bytes(folder, latent, element, guided=guided),
        "decode": working_memory.decoder_bytes(folder, pixels, vae_bytes),
        "encode": working_memory.encoder_bytes(folder, texts, element),
    }
    output = working_memory.output_bytes(pixels)
    # The decoded tiles, which overlap, are kept until they are joined, row by row and then all.
    joined = output * vae_bytes + 2 * output
    tiles = {
        side: (working_memory.decoder_bytes(folder, min(pixels, side**2), vae_bytes) or 0) + joined
        for side in vae_tiling.tile_sizes(width, height, scale)
    }
    return MemoryEstimate(
        weights=dict(weights),
        denoise=found["denoise"] or 0,
        attention=working_memory.attention_bytes(folder, latent, element, guided=guided),
        decode=(found["decode"] or 0) + 2 * output,
        tile=min(tiles.values()),
        tiles=tiles,
        encode=found["encode"] or 0,
        workspace=_WORKSPACE,
        layer=layer,
        contiguous=working_memory.contiguous_factor(folder),
        unknown=tuple(name for name, size in found.items() if size is None),
    )


def candidate_measures(
    device: Device, *, slicing: bool = True, batch: int = 1
) -> Iterator[Measures]:
    """The sets of measures that a plan may use, cheapest first.

    `slicing` allows attention slicing; the images of a `batch` can be decoded one by one.
    """
    yield ()
    if batch > 1:
        yield (VAE_SLICING,)
    yield (VAE_TILING,)
    if slicing and not device.fused_attention:
        yield (VAE_TILING, ATTENTION_SLICING)
    if device.own_memory:
        yield (VAE_TILING, TEXT_ENCODER_OFFLOAD)
        sliced = (VAE_SLICING,) if batch > 1 else ()
        for offload in (MODEL_OFFLOAD, GROUP_OFFLOAD):
            yield (*sliced, offload)
            yield (VAE_TILING, offload)


def low_memory_measures(device: Device, *, slicing: bool = True) -> Measures:
    """The measures of `--memory low`: all that cost little time."""
    if device.own_memory:
        return (VAE_TILING, MODEL_OFFLOAD)
    sliced = slicing and not device.fused_attention
    return (VAE_TILING, ATTENTION_SLICING) if sliced else (VAE_TILING,)


def choose_measures(
    needed: MemoryEstimate,
    device: Device,
    free: int,
    host: int,
    batch: int,
    *,
    least: Measures = (),
    slicing: bool = True,
) -> Measures | None:
    """The cheapest measures, including `least`, with which the request fits, or `None`.

    `free` is the bytes free on the device, `host` those free on the host for offloaded weights.
    Where the need is not known, what is known decides, and the strongest measures are taken rather
    than none.
    """
    possible = [
        measures
        for measures in candidate_measures(device, slicing=slicing, batch=batch)
        if _includes(measures, least) and host_bytes(needed, measures) <= host * _USABLE_FRACTION
    ]
    # Small tiles cost more than sending the text encoders away, and less than sending more away.
    for measures, tile in [
        *((m, vae_tiling.COMFORTABLE_TILE) for m in possible if not _is_slow(m)),
        *((m, 0) for m in possible),
    ]:
        if VAE_TILING in measures and needed.tiles:
            usable = free * _USABLE_FRACTION
            enough = needed.largest_tile(measures, batch, device, usable, tile) is not None
        else:
            enough = fits(needed, measures, batch, device, free)
        if enough:
            return measures
    if needed.unknown:
        return possible[-1] if possible else least
    return None


def choose_tile(
    needed: MemoryEstimate,
    measures: Measures,
    batch: int,
    device: Device,
    free: int,
    *,
    small: bool = False,
) -> int | None:
    """The side of the tiles in pixels, the largest that fits; `None` where nothing is tiled.

    With `small`, tiles are no larger than is comfortable, however much is free.
    """
    if VAE_TILING not in measures or not needed.tiles:
        return None
    usable = free * _USABLE_FRACTION
    found = needed.largest_tile(measures, batch, device, usable) or min(needed.tiles)
    if small:
        sides = (side for side in needed.tiles if side <= vae_tiling.COMFORTABLE_TILE)
        found = min(found, max(sides, default=found))
    return found


def host_bytes(needed: MemoryEstimate, measures: Measures) -> int:
    """Bytes of weights that the measures keep on the host."""
    if TEXT_ENCODER_OFFLOAD in measures:
        return sum(size for name, size in needed.weights.items() if is_text_encoder(name))
    return sum(needed.weights.values()) if _is_slow(measures) else 0


def fits(
    needed: MemoryEstimate,
    measures: Measures,
    batch: int,
    device: Device,
    free: int,
    tile: int | None = None,
) -> bool:
    """Whether images fit into `free` bytes with the measures, with tiles of that side."""
    return needed.peak(measures, batch, device, tile) <= free * _USABLE_FRACTION


def images_that_fit(needed: MemoryEstimate, device: Device, free: int, measures: Measures) -> int:
    """The largest batch size, a power of two, that fits into `free` bytes; at least 1.

    Batches that cannot be decoded at once are decoded image by image.
    """
    if needed.unknown:
        return 1
    measures = (*measures, VAE_SLICING)
    size = 1
    while size < 1024 and fits(needed, measures, 2 * size, device, free):
        size *= 2
    return size


def _is_slow(measures: Measures) -> bool:
    """Whether the measures move the denoiser's weights for every image."""
    return bool({MODEL_OFFLOAD, GROUP_OFFLOAD} & set(measures))


def _includes(measures: Measures, least: Measures) -> bool:
    """Whether the measures include `least`; group offload counts as model offload, too."""
    stronger = {MODEL_OFFLOAD: GROUP_OFFLOAD}
    return all(m in measures or stronger.get(m) in measures for m in least)
