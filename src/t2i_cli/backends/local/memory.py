"""Estimate the memory that a model needs, and choose the measures with which it fits."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from t2i_cli.backends.local.device import Device
from t2i_cli.models import diffusers_folder

VAE_TILING = "vae-tiling"
ATTENTION_SLICING = "attention-slicing"
MODEL_OFFLOAD = "model-offload"
GROUP_OFFLOAD = "group-offload"
Measures = tuple[str, ...]

MIB = 2**20
_USABLE_FRACTION = 0.95
"""Fraction of the free memory that a plan uses; the rest is lost to fragmentation."""
_DECODE_FACTOR = 4
_UNET_FACTOR = 32
_TRANSFORMER_FACTOR = 24
"""Peak memory as a multiple of one full-size activation.

Counted from the allocations of diffusers' own networks: AutoencoderKL's decode peaks at 3 x
(height x width x channels of its last-but-one stage) at every size; a Stable Diffusion 1.5 UNet
grows by 26 x (latent pixels x first channels). The rest is for convolution workspaces.
"""
_TEXT_TOKENS = 512
_GROUPS = 16
"""A group that is on the device at a time has at most 1/16 of the largest network's bytes."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that images of one size need: `weights` by component, the other fields per image.

    `attention` is the largest attention matrix, stored only without a fused SDPA kernel; `decode`
    is for decoding the whole image, `tile` for decoding in tiles.
    """

    weights: Mapping[str, int]
    denoise: int
    attention: int
    decode: int
    tile: int

    def working(self, measures: Measures, batch: int, device: Device) -> int:
        """Peak bytes in addition to the weights."""
        attention = 0 if device.fused_attention or ATTENTION_SLICING in measures else self.attention
        decode = self.tile if VAE_TILING in measures else self.decode * batch
        return max((self.denoise + attention) * batch, decode)

    def peak(self, measures: Measures, batch: int, device: Device) -> int:
        """Peak bytes on the device."""
        resident = sum(self.weights.values())
        if GROUP_OFFLOAD in measures:
            resident = 2 * max(self.weights.values(), default=0) // _GROUPS
        elif MODEL_OFFLOAD in measures:
            resident = max(self.weights.values(), default=0)
        return resident + self.working(measures, batch, device)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How a request would be run: memory needed and free, in MiB, and the measures applied.

    `weights_mib` is an estimate if part of the model is still to be downloaded.
    """

    device: str
    device_name: str
    dtype: str
    free_mib: int
    total_mib: int
    weights_mib: int
    working_mib: int
    measures: Measures
    download_mib: int

    def to_json(self) -> dict[str, object]:
        """The plan as --dry-run prints it."""
        return asdict(self) | {"measures": list(self.measures)}

    def text(self) -> str:
        """The plan as -v prints it."""
        return (
            f"plan: {self.dtype} on {self.device} ({self.device_name}), "
            f"{self.weights_mib:,} MiB of weights and {self.working_mib:,} MiB to work with, "
            f"{self.free_mib:,} of {self.total_mib:,} MiB free; "
            f"measures: {', '.join(self.measures) or 'none'}"
        )


def estimate_memory(
    folder: Path,
    weights: Mapping[str, int],
    width: int,
    height: int,
    element: int,
    *,
    vae_element: int | None = None,
) -> MemoryEstimate:
    """The memory for images of `width` x `height` pixels with guidance.

    `weights` are bytes by component; `element` is the bytes per number, `vae_element` that of the
    VAE if it differs.
    """
    vae_bytes = vae_element or element
    name, config = diffusers_folder.denoiser_config(folder)
    vae = diffusers_folder.component_config(folder, "vae") or diffusers_folder.component_config(
        folder, "movq"
    )
    scale = diffusers_folder.vae_scale_factor(folder)
    latent = width * height // scale**2
    attention = 0
    if name == "transformer":
        heads = diffusers_folder.largest_size(config, "num_attention_heads", 24)
        inner = heads * diffusers_folder.largest_size(config, "attention_head_dim", 128)
        denoise = _TRANSFORMER_FACTOR * (latent // 4 + _TEXT_TOKENS) * inner
    else:
        channels = config.get("block_out_channels") or [320]
        first = channels[0] if isinstance(channels, list) else channels
        denoise = _UNET_FACTOR * latent * first
        attention = 8 * latent**2
    channels = vae.get("block_out_channels") or vae.get("decoder_block_out_channels") or [128, 256]
    vae_channels = channels[min(1, len(channels) - 1)]
    side = min(diffusers_folder.largest_size(vae, "sample_size", 512), 512)
    pixel_bytes = 3 * width * height * 4
    guidance_batch = 2
    return MemoryEstimate(
        weights=dict(weights),
        denoise=guidance_batch * denoise * element,
        attention=guidance_batch * attention * element,
        decode=_DECODE_FACTOR * width * height * vae_channels * vae_bytes + pixel_bytes,
        tile=_DECODE_FACTOR * min(width * height, side**2) * vae_channels * vae_bytes
        + 2 * pixel_bytes,
    )


def candidate_measures(device: Device, *, slicing: bool = True) -> Iterator[Measures]:
    """The sets of measures that a plan may use, cheapest first.

    `slicing` allows attention slicing.
    """
    yield ()
    yield (VAE_TILING,)
    if slicing and not device.fused_attention:
        yield (VAE_TILING, ATTENTION_SLICING)
    if device.own_memory:
        yield (VAE_TILING, MODEL_OFFLOAD)
        yield (VAE_TILING, GROUP_OFFLOAD)


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
    """
    for measures in candidate_measures(device, slicing=slicing):
        if not _includes(measures, least):
            continue
        offloads = {MODEL_OFFLOAD, GROUP_OFFLOAD} & set(measures)
        if offloads and sum(needed.weights.values()) > host * _USABLE_FRACTION:
            continue
        if needed.peak(measures, batch, device) <= free * _USABLE_FRACTION:
            return measures
    return None


def images_that_fit(needed: MemoryEstimate, device: Device, free: int, measures: Measures) -> int:
    """The largest batch size, a power of two, that fits into `free` bytes; at least 1."""
    size = 1
    while size < 1024 and needed.peak(measures, 2 * size, device) <= free * _USABLE_FRACTION:
        size *= 2
    return size


def _includes(measures: Measures, least: Measures) -> bool:
    """Whether the measures include `least`; group offload counts as model offload, too."""
    stronger = {MODEL_OFFLOAD: GROUP_OFFLOAD}
    return all(m in measures or stronger.get(m) in measures for m in least)
