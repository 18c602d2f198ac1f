"""Tiles: which sizes there are, and that every VAE of diffusers decodes in those it is told."""

from collections.abc import Callable
from typing import Any

import pytest

from t2i_cli.backends.local import vae_tiling
from t2i_cli.models.libraries import LibraryObject


def decoded_pixels(width: int, height: int, side: int) -> int:
    """Pixels that diffusers' loop over tiles decodes, a quarter of a tile overlapping."""
    columns, rows = (range(0, length, side * 3 // 4) for length in (width, height))
    return sum(min(side, width - x) * min(side, height - y) for x in columns for y in rows)


@pytest.mark.parametrize("size", [(1024, 1024), (2048, 2048), (1344, 768), (4096, 512), (520, 520)])
@pytest.mark.parametrize("scale", [8, 16, 32])
def test_every_tile_is_whole_in_latents_and_worth_its_memory(
    size: tuple[int, int], scale: int
) -> None:
    sides = vae_tiling.tile_sizes(*size, scale)
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] == 256
    assert sides[0] < max(size)
    assert all(side // 4 % scale == 0 for side in sides)
    costs = [decoded_pixels(*size, side) for side in sides]
    assert costs == sorted(costs), "larger tiles decode less twice"


def test_the_largest_tile_decodes_little_twice() -> None:
    largest = vae_tiling.tile_sizes(1024, 1024, 8)[0]
    assert decoded_pixels(1024, 1024, largest) < 1.4 * 1024**2


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (256, 128)])
def test_small_images_have_the_smallest_tile_only(size: tuple[int, int]) -> None:
    assert vae_tiling.tile_sizes(*size, 8) == [256]


@pytest.mark.parametrize("scale", [4, 8, 32])
def test_each_try_is_smaller_down_to_the_smallest(scale: int) -> None:
    side: int | None = 2048
    tried: list[int] = []
    while side is not None:
        tried.append(side)
        side = vae_tiling.smaller_tile(side, scale)
    assert tried == sorted(set(tried), reverse=True)
    assert tried[-1] == 256
    assert all(each % scale == 0 for each in tried)
    assert len(tried) < 10


def _kl(cls: str, stages: int, **more: Any) -> LibraryObject:  # noqa: ANN401
    import diffusers

    return getattr(diffusers, cls)(
        block_out_channels=(8,) * stages,
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=1024,
        **more,
    )


def _deep_compression() -> LibraryObject:
    from diffusers import AutoencoderDC

    shape: dict[str, Any] = {
        "encoder_block_out_channels": (4,) * 6,
        "decoder_block_out_channels": (4,) * 6,
        "encoder_block_types": ("ResBlock",) * 6,
        "decoder_block_types": ("ResBlock",) * 6,
        "encoder_layers_per_block": (1,) * 6,
        "decoder_layers_per_block": (1,) * 6,
        "encoder_qkv_multiscales": ((),) * 6,
        "decoder_qkv_multiscales": ((),) * 6,
        "upsample_block_type": "interpolate",
    }
    return AutoencoderDC(latent_channels=4, **shape)


def _video(cls: str) -> LibraryObject:
    import diffusers

    return getattr(diffusers, cls)(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def _hunyuan() -> LibraryObject:
    from diffusers import AutoencoderKLHunyuanImage

    return AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=16,
        block_out_channels=(32,) * 6,
        layers_per_block=1,
        spatial_compression_ratio=32,
        sample_size=1024,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )


def _tiny() -> LibraryObject:
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(4,) * 4,
        decoder_block_out_channels=(4,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )


VAES: dict[str, Callable[[], LibraryObject]] = {
    "AutoencoderKL": lambda: _kl("AutoencoderKL", 4, latent_channels=4),
    "AutoencoderKL of 16 px": lambda: _kl("AutoencoderKL", 5, latent_channels=4),
    "AutoencoderKLFlux2": lambda: _kl("AutoencoderKLFlux2", 4, latent_channels=4),
    "AutoencoderKLQwenImage": lambda: _video("AutoencoderKLQwenImage"),
    "AutoencoderKLWan": lambda: _video("AutoencoderKLWan"),
    "AutoencoderDC": _deep_compression,
    "AutoencoderKLHunyuanImage": _hunyuan,
    "AutoencoderTiny": _tiny,
}


@pytest.mark.parametrize(
    "name",
    [
        # The other video VAE, Qwen's, tiles by the same code.
        pytest.param(name, marks=[pytest.mark.full] if name == "AutoencoderKLWan" else [])
        for name in VAES
    ],
)
def test_a_larger_latent_is_decoded_in_several_smaller_calls(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    vae = VAES[name]().eval()
    scale = vae_tiling.pixels_per_latent(vae)
    channels = vae.config.get("latent_channels") or vae.config.z_dim
    frames = [1] if name in {"AutoencoderKLQwenImage", "AutoencoderKLWan"} else []
    side = 512 // scale
    latents = torch.randn(2, channels, *frames, side, side)
    seen: list[tuple[int, int]] = []
    decode = vae.decoder.forward

    def counted(latent: LibraryObject, *args: object, **kwargs: object) -> LibraryObject:
        seen.append((len(latent), max(latent.shape[-2:])))
        return decode(latent, *args, **kwargs)

    monkeypatch.setattr(vae.decoder, "forward", counted)
    with torch.no_grad():
        whole = vae.decode(latents)[0]
        assert (len(seen[0]), seen[0][1]) == (2, side)
        for tile in (256, 384):
            seen.clear()
            vae_tiling.decode_in_tiles(vae, tile)
            tiled = vae.decode(latents)[0]
            assert tiled.shape == whole.shape
            assert len(seen) >= 2 * 4, "each of two images in at least four tiles"
            assert all(batch == 1 and latent <= tile // scale for batch, latent in seen)
            assert torch.isfinite(tiled).all()


def test_overlaps_are_those_of_diffusers() -> None:
    vae = VAES["AutoencoderKLQwenImage"]()
    overlap = vae.tile_sample_stride_height / vae.tile_sample_min_height
    vae_tiling.decode_in_tiles(vae, 512)
    assert vae.tile_sample_stride_height / vae.tile_sample_min_height == overlap
    plain = VAES["AutoencoderKL"]()
    overlap = plain.tile_overlap_factor
    vae_tiling.decode_in_tiles(plain, 512)
    assert (plain.tile_overlap_factor, plain.tile_latent_min_size) == (overlap, 64)


def test_a_vae_without_tiles_is_left_as_it_is() -> None:
    """VQModel inherits the methods, and raises in them."""
    from diffusers import VQModel

    vae = VQModel()
    assert not vae_tiling.can_tile(vae)
    vae_tiling.decode_in_tiles(vae, 256)


def test_every_vae_of_text_to_image_that_tiles_is_tested() -> None:
    """Where diffusers gets a VAE with tiles of other attributes, this fails."""
    import importlib
    import inspect
    import pkgutil

    from diffusers.models import autoencoders

    video = "Allegro|CogVideoX|Cosmos|HunyuanVideo|LTX|Magvit|Mochi|KVAE|MiniMax|VidTok|Refiner"
    video += "|Oobleck|Consistency|QwenImage21"
    found = set()
    for module in pkgutil.iter_modules(autoencoders.__path__):
        loaded = importlib.import_module(f"diffusers.models.autoencoders.{module.name}")
        for name, cls in vars(loaded).items():
            if inspect.isclass(cls) and cls.__module__ == loaded.__name__:
                source = inspect.getsource(cls)
                if "self.use_tiling = False" in source and "def decode" in source:
                    found.add(name)
    others = {name for name in found if not any(part in name for part in video.split("|"))}
    assert others == {name.split(" ")[0] for name in VAES}
