"""Pictures of what an image is becoming: small ones, decoded from the latents between two steps."""

import logging
from collections.abc import Sequence
from functools import wraps
from typing import Self

from t2i_cli.backends.local import memory
from t2i_cli.backends.local.loading import LoadedPipeline, latent_decoder
from t2i_cli.events import Preview
from t2i_cli.models import diffusers_folder, libraries
from t2i_cli.models.libraries import LibraryObject
from t2i_cli.request import ResolvedRequest

MAX_PREVIEW_SIDE = 256
"""Pixels; the latents of larger images are shrunk, so that a preview costs little."""
preview_log = logging.getLogger(__name__)


class PreviewHook:
    """Watches the scheduler of one pass, as a context, and shows what is wanted of it.

    Where a family's latents cannot be made a picture of, none come, and nothing is said: an image
    is not to fail for its preview.
    """

    def __init__(
        self,
        loaded: LoadedPipeline,
        requests: Sequence[ResolvedRequest],
        indices: Sequence[int],
    ) -> None:
        self._loaded = loaded
        self._requests = requests
        self._indices = indices
        self._wanted = [loaded.previews[index] for index in indices]
        self._scheduler: LibraryObject = getattr(loaded.pipe, "scheduler", None)
        self._seen: tuple[LibraryObject, ...] | None = None
        # The VAE would come to the device, and the denoiser go, for every preview.
        offloaded = memory.MODEL_OFFLOAD in loaded.measures
        self._on = any(self._wanted) and self._scheduler is not None and not offloaded

    def __enter__(self) -> Self:
        if self._on:
            step = self._scheduler.step

            # Pipelines look at its signature.
            @wraps(step)
            def watched(*args: LibraryObject, **kwargs: LibraryObject) -> LibraryObject:
                result = step(*args, **kwargs)
                self._seen = (args, result)
                return result

            self._scheduler.step = watched
        return self

    def __exit__(self, *_: object) -> None:
        self._seen = None
        if "step" in vars(self._scheduler or self):
            del self._scheduler.step

    def after(self, step: int, steps: int) -> None:
        """Show what is due after a step."""
        if not self._on or self._seen is None:
            return
        due = [row for row, count in enumerate(self._wanted) if step in _moments(count, steps)]
        if not due:
            return
        try:
            pictures = self._pictures(due)
        except Exception as error:  # noqa: BLE001 - whatever a family's VAE makes of such latents
            preview_log.debug("No previews: %r", error)
            self._on = False
            return
        for row, picture in zip(due, pictures, strict=True):
            self._loaded.on_event(
                Preview(index=self._indices[row], step=step, steps=steps, image=picture)
            )

    def _pictures(self, rows: list[int]) -> list[LibraryObject]:
        """RGB pictures of some of the pass's images."""
        import torch
        from PIL import Image

        pipe, vae = self._loaded.pipe, latent_decoder(self._loaded.pipe)
        latents = _estimate(self._scheduler, *(self._seen or ()))[rows]
        first = self._requests[0]
        if latents.ndim == 3:  # packed, two by two
            latents = pipe._unpack_latents(
                latents, first.height, first.width, pipe.vae_scale_factor
            )
        # Some families work at a size of their own, and fit the picture in the end.
        side = max(latents.shape[-2:]) * getattr(pipe, "vae_scale_factor", 8)
        latents = _unscaled(vae, _shrunk(latents, side))
        # Only where its pipeline casts it as well (on MPS): it was read in float32 elsewhere.
        exact = diffusers_folder.float32_decoder(self._loaded.folder, self._loaded.dtype)
        upcast = exact is not None and vae.dtype == torch.float16
        with torch.no_grad(), libraries.suppress_warnings():
            if upcast:
                vae.to(torch.float32)
            try:
                # Not the rescuing decode: no measure is to be taken for a preview.
                decoded = type(vae).decode(vae, latents.to(vae.dtype), return_dict=False)[0]
            finally:
                if upcast:
                    vae.to(torch.float16)
        if decoded.ndim == 5:  # a video of one picture
            decoded = decoded[:, :, 0]
        pixels = ((decoded.float() / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8)
        return [Image.fromarray(one.permute(1, 2, 0).numpy(), "RGB") for one in pixels]


def _moments(count: int, steps: int) -> set[int]:
    """The steps after which so many previews are shown, evenly spread; never the last."""
    return {steps * part // (count + 1) for part in range(1, count + 1)} - {0, steps}


def _estimate(
    scheduler: LibraryObject, arguments: tuple[LibraryObject, ...], result: LibraryObject
) -> LibraryObject:
    """The latents without their noise, as a step foresees them, or else with it."""
    if len(result) > 1:
        return result[1]  # Euler, DDIM, LCM and others tell
    config = scheduler.config
    if type(scheduler).__name__.startswith("FlowMatchEuler"):
        output, _, latents = arguments
        return latents - scheduler.sigmas[scheduler.step_index - 1] * output
    foreseen = "++" in config.get("algorithm_type", "") or config.get("predict_x0")
    # A config may hold what is another scheduler's.
    if foreseen and hasattr(scheduler, "model_outputs"):
        return scheduler.model_outputs[-1]
    return result[0]


def _shrunk(latents: LibraryObject, side: int) -> LibraryObject:
    """The latents of a picture of at most MAX_SIDE pixels a side."""
    from torch.nn.functional import interpolate

    if side <= MAX_PREVIEW_SIDE:
        return latents
    flat = latents[:, :, 0] if latents.ndim == 5 else latents
    flat = interpolate(flat.float(), scale_factor=MAX_PREVIEW_SIDE / side, mode="area")
    return flat.unsqueeze(2) if latents.ndim == 5 else flat


def _unscaled(vae: LibraryObject, latents: LibraryObject) -> LibraryObject:
    """The latents as the VAE takes them: the pipelines keep them at about unit variance."""
    import torch

    config = vae.config
    scale, shift = 1 / config.get("scaling_factor", 1.0), config.get("shift_factor") or 0.0
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        shape = (1, -1, *[1] * (latents.ndim - 2))
        mean, std = (
            torch.tensor(config[name], device=latents.device).view(shape)
            for name in ("latents_mean", "latents_std")
        )
        return latents * std * scale + mean
    return latents * scale + shift
