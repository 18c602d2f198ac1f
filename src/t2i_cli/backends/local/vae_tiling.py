"""Tiles of the VAE's decode: which sizes there are, and how each of diffusers' VAEs is told."""

from t2i_cli.models.libraries import LibraryObject

SMALLEST_TILE = 256
"""Pixels; smaller tiles show, since each is normalised on its own."""
COMFORTABLE_TILE = 512
"""Pixels; smaller tiles decode more of the image twice than other measures cost."""
_GRID = 64
"""Tiles are multiples of it: a quarter of it, the overlap, is whole in latents of every VAE."""
_OVERLAP = 0.25
"""The overlap of diffusers' own tiles, as a fraction, of most of its VAEs."""


def tile_sizes(width: int, height: int, scale: int) -> list[int]:
    """The sides of tiles for an image, in pixels, largest first; `scale` is pixels per latent.

    A tile that would decode no less in all than a smaller one is left out.
    """
    step = max(_GRID, 4 * scale)
    sizes: list[int] = []
    least = 0
    for side in range(SMALLEST_TILE, max(width, height), step):
        decoded = _decoded(width, side) * _decoded(height, side)
        if not sizes or decoded < least:
            sizes.insert(0, side)
            least = decoded
    return sizes or [SMALLEST_TILE]


def _decoded(length: int, side: int) -> int:
    """Pixels decoded along one side of an image, with the overlaps."""
    stride = int(side * (1 - _OVERLAP))
    return sum(min(side, length - start) for start in range(0, length, stride))


def smaller_tile(side: int, scale: int) -> int | None:
    """The next size to try, about half the area; `None` below the smallest."""
    if side <= SMALLEST_TILE:
        return None
    step = max(_GRID, 4 * scale)
    return max(SMALLEST_TILE, side * 7 // 10 // step * step)


def can_tile(vae: LibraryObject) -> bool:
    """Whether a VAE decodes in tiles; every one has the method, some raise in it."""
    return hasattr(vae, "use_tiling") and hasattr(vae, "enable_tiling")


def can_slice(vae: LibraryObject) -> bool:
    """Whether a VAE can decode the images of a batch one by one."""
    return hasattr(vae, "use_slicing") and hasattr(vae, "enable_slicing")


def decode_in_slices(vae: LibraryObject) -> None:
    """Decode one image of a batch at a time, where the VAE can."""
    if can_slice(vae):
        vae.enable_slicing()


def decode_in_tiles(vae: LibraryObject, side: int) -> None:
    """Decode in tiles of `side` pixels and the VAE's own overlap, one image at a time."""
    decode_in_slices(vae)
    if not can_tile(vae):
        return
    vae.enable_tiling()
    scale = pixels_per_latent(vae)
    if hasattr(vae, "tile_sample_min_size"):
        vae.tile_sample_min_size = side
        vae.tile_latent_min_size = side // scale
    for axis in ("height", "width"):
        _set_axis(vae, axis, side, scale)


def _set_axis(vae: LibraryObject, axis: str, side: int, scale: int) -> None:
    """Set the tiles of the VAEs that have a height and a width of tiles, and mostly a stride."""
    sample, stride = f"tile_sample_min_{axis}", f"tile_sample_stride_{axis}"
    latent = f"tile_latent_min_{axis}"
    if not hasattr(vae, sample):
        return
    if hasattr(vae, stride):
        kept = getattr(vae, stride) / getattr(vae, sample)
        setattr(vae, stride, max(scale, int(side * kept) // scale * scale))
    if hasattr(vae, latent):
        setattr(vae, latent, side // scale)
    setattr(vae, sample, side)


def pixels_per_latent(vae: LibraryObject) -> int:
    """Image pixels per latent pixel along one side, as the VAE itself computes its tiles."""
    for owner in (vae.config, vae):  # attributes that are in the config are deprecated
        for name in ("spatial_compression_ratio", "spatial_scale_factor"):
            if ratio := getattr(owner, name, None):
                return int(ratio)
    return int(2 ** (len(vae.config.block_out_channels) - 1))
