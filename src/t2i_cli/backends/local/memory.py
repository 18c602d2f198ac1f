"""Whether a model fits: what it needs, what is free, and the measures that close the gap."""

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
_USABLE = 0.95
"""The share of the free memory that a plan counts on; the rest goes to fragments."""
_DECODE = 4
_UNET = 32
_TRANSFORMER = 24
"""Peak memory as a multiple of one full-size activation.

Counted from the allocations of diffusers' own networks: AutoencoderKL's decode peaks at 3 x
(height x width x channels of its last-but-one stage) at every size; a Stable Diffusion 1.5 UNet
grows by 26 x (latent pixels x first channels). The rest is for convolution workspaces.
"""
_TEXT_TOKENS = 512
_GROUP_SHARE = 16
"""A group that is on the device at a time is at most this part of the largest network."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """What images of one size take, in bytes: `weights` by component, the rest for each image.

    `attention` is the largest attention matrix, held only where SDPA has no fused kernel; `decode`
    decodes whole, `tile` in tiles.
    """

    weights: Mapping[str, int]
    denoise: int
    attention: int
    decode: int
    tile: int

    def working(self, measures: Measures, batch: int, device: Device) -> int:
        """Bytes beside the weights at the worst moment."""
        attention = 0 if device.fused_attention or ATTENTION_SLICING in measures else self.attention
        decode = self.tile if VAE_TILING in measures else self.decode * batch
        return max((self.denoise + attention) * batch, decode)

    def peak(self, measures: Measures, batch: int, device: Device) -> int:
        """Bytes on the device at the worst moment."""
        resident = sum(self.weights.values())
        if GROUP_OFFLOAD in measures:
            resident = 2 * max(self.weights.values(), default=0) // _GROUP_SHARE
        elif MODEL_OFFLOAD in measures:
            resident = max(self.weights.values(), default=0)
        return resident + self.working(measures, batch, device)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How a request would be run: what it needs, what is free, what is done about it. MiB.

    `weights_mib` is an estimate where some of the model is still to be downloaded.
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


def estimate_memory(
    folder: Path,
    weights: Mapping[str, int],
    width: int,
    height: int,
    element: int,
    *,
    vae_element: int | None = None,
) -> MemoryEstimate:
    """What images of `width` x `height` pixels need, at `element` bytes a number, with guidance.

    `vae_element` are the bytes of a number of the VAE, where they differ.
    """
    at_decode = vae_element or element
    name, config = diffusers_folder.denoiser_config(folder)
    vae = diffusers_folder.component_config(folder, "vae") or diffusers_folder.component_config(
        folder, "movq"
    )
    scale = diffusers_folder.vae_scale_factor(folder)
    latent = width * height // scale**2
    attention = 0
    if name == "transformer":
        heads = config.get("num_attention_heads") or 24
        inner = int(heads) * int(config.get("attention_head_dim") or 128)
        denoise = _TRANSFORMER * (latent // 4 + _TEXT_TOKENS) * inner
    else:
        channels = config.get("block_out_channels") or [320]
        denoise = _UNET * latent * int(channels[0])
        attention = 8 * latent**2
    channels = vae.get("block_out_channels") or vae.get("decoder_block_out_channels") or [128, 256]
    wide = int(channels[min(1, len(channels) - 1)])
    side = min(int(vae.get("sample_size") or 512), 512)
    image = 3 * width * height * 4
    passes = 2
    return MemoryEstimate(
        weights=dict(weights),
        denoise=passes * denoise * element,
        attention=passes * attention * element,
        decode=_DECODE * width * height * wide * at_decode + image,
        tile=_DECODE * min(width * height, side**2) * wide * at_decode + 2 * image,
    )


def candidate_measures(device: Device, *, slicing: bool = True) -> Iterator[Measures]:
    """The measures that a plan may take, the cheapest first; attention is cut if `slicing`."""
    yield ()
    yield (VAE_TILING,)
    if slicing and not device.fused_attention:
        yield (VAE_TILING, ATTENTION_SLICING)
    if device.own_memory:
        yield (VAE_TILING, MODEL_OFFLOAD)
        yield (VAE_TILING, GROUP_OFFLOAD)


def low_memory_measures(device: Device, *, slicing: bool = True) -> Measures:
    """What `--memory low` takes from the start: all that costs little time."""
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
    """The cheapest measures, `least` among them, with which the request fits; `None` if none do.

    `free` bytes on the device; `host` bytes where offloaded weights would rest.
    """
    for measures in candidate_measures(device, slicing=slicing):
        if not _includes(measures, least):
            continue
        offloads = {MODEL_OFFLOAD, GROUP_OFFLOAD} & set(measures)
        if offloads and sum(needed.weights.values()) > host * _USABLE:
            continue
        if needed.peak(measures, batch, device) <= free * _USABLE:
            return measures
    return None


def images_that_fit(needed: MemoryEstimate, device: Device, free: int, measures: Measures) -> int:
    """How many images, a power of two, fit one pass beside the weights; at least one."""
    most = 1
    while most < 1024 and needed.peak(measures, 2 * most, device) <= free * _USABLE:
        most *= 2
    return most


def _includes(measures: Measures, least: Measures) -> bool:
    """Whether the measures are as strong as `least`: group offload does what model offload does."""
    stronger = {MODEL_OFFLOAD: GROUP_OFFLOAD}
    return all(m in measures or stronger.get(m) in measures for m in least)
