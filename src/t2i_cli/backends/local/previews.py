"""Previews of an image during denoising: small, decoded from the latents between two steps."""

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
"""Pixels; the latents of larger images are downscaled, so that a preview costs little."""
preview_log = logging.getLogger(__name__)


class PreviewHook:
    """Context manager that wraps the scheduler's step of one batch and emits its previews.

    If a pipeline's latents cannot be decoded, previews are turned off without a message: an image
    must not fail because of its preview.
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
        self._counts = [loaded.previews[index] for index in indices]
        self._scheduler: LibraryObject = getattr(loaded.pipe, "scheduler", None)
        self._last_step: tuple[LibraryObject, ...] | None = None
        # With model offload, every preview would swap the denoiser for the VAE on the device.
        offloaded = memory.MODEL_OFFLOAD in loaded.measures
        self._enabled = any(self._counts) and self._scheduler is not None and not offloaded

    def __enter__(self) -> Self:
        if self._enabled:
            step = self._scheduler.step

            # Pipelines inspect the signature of `step`.
            @wraps(step)
            def recorded_step(*args: LibraryObject, **kwargs: LibraryObject) -> LibraryObject:
                result = step(*args, **kwargs)
                self._last_step = (args, result)
                return result

            self._scheduler.step = recorded_step
        return self

    def __exit__(self, *_: object) -> None:
        self._last_step = None
        if "step" in vars(self._scheduler or self):
            del self._scheduler.step

    def after_step(self, step: int, steps: int) -> None:
        """Emit the previews that are due after a step (from 1 to `steps`)."""
        if not self._enabled or self._last_step is None:
            return
        due = [
            row for row, count in enumerate(self._counts) if step in _preview_steps(count, steps)
        ]
        if not due:
            return
        try:
            images = self._decode(due)
        except Exception as error:  # noqa: BLE001 - a VAE may raise anything
            preview_log.debug("No previews: %r", error)
            self._enabled = False
            return
        for row, image in zip(due, images, strict=True):
            self._loaded.on_event(
                Preview(index=self._indices[row], step=step, steps=steps, image=image)
            )

    def _decode(self, rows: list[int]) -> list[LibraryObject]:
        """RGB PIL images of the given rows of the batch."""
        import torch
        from PIL import Image

        pipe, vae = self._loaded.pipe, latent_decoder(self._loaded.pipe)
        latents = _predicted_latents(self._scheduler, *(self._last_step or ()))[rows]
        first = self._requests[0]
        if latents.ndim == 3:  # packed 2 x 2: batch x tokens x channels
            latents = pipe._unpack_latents(
                latents, first.height, first.width, pipe.vae_scale_factor
            )
        # Some pipelines work at their own size, and resize the image at the end.
        side = max(latents.shape[-2:]) * getattr(pipe, "vae_scale_factor", 8)
        latents = _unscale(vae, _downscale(latents, side))
        # Only on MPS, where the pipeline casts it too; elsewhere it was loaded in float32.
        float32_component = diffusers_folder.float32_decoder(
            self._loaded.folder, self._loaded.dtype
        )
        upcast = float32_component is not None and vae.dtype == torch.float16
        with torch.no_grad(), libraries.suppress_warnings():
            if upcast:
                vae.to(torch.float32)
            try:
                # The class's own decode, without the OOM fallback: previews apply no measures.
                decoded = type(vae).decode(vae, latents.to(vae.dtype), return_dict=False)[0]
            finally:
                if upcast:
                    vae.to(torch.float16)
        if decoded.ndim == 5:  # a video of one frame
            decoded = decoded[:, :, 0]
        pixels = ((decoded.float() / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8)
        return [Image.fromarray(one.permute(1, 2, 0).numpy(), "RGB") for one in pixels]


def _preview_steps(count: int, steps: int) -> set[int]:
    """The steps after which `count` previews are due: evenly spaced, without the last step."""
    return {steps * part // (count + 1) for part in range(1, count + 1)} - {0, steps}


def _predicted_latents(
    scheduler: LibraryObject, arguments: tuple[LibraryObject, ...], result: LibraryObject
) -> LibraryObject:
    """The denoised latents that a step predicts (x0), else the step's noisy latents."""
    if len(result) > 1:
        return result[1]  # Euler, DDIM, LCM and others return it
    config = scheduler.config
    if type(scheduler).__name__.startswith("FlowMatchEuler"):
        output, _, latents = arguments
        return latents - scheduler.sigmas[scheduler.step_index - 1] * output
    predicts_x0 = "++" in config.get("algorithm_type", "") or config.get("predict_x0")
    # A config may contain settings of another scheduler.
    if predicts_x0 and hasattr(scheduler, "model_outputs"):
        return scheduler.model_outputs[-1]
    return result[0]


def _downscale(latents: LibraryObject, side: int) -> LibraryObject:
    """Downscale latents to those of an image of at most MAX_PREVIEW_SIDE pixels per side.

    Latents are batch x channels (x 1 frame) x height x width.
    """
    from torch.nn.functional import interpolate

    if side <= MAX_PREVIEW_SIDE:
        return latents
    frames = latents[:, :, 0] if latents.ndim == 5 else latents
    frames = interpolate(frames.float(), scale_factor=MAX_PREVIEW_SIDE / side, mode="area")
    return frames.unsqueeze(2) if latents.ndim == 5 else frames


def _unscale(vae: LibraryObject, latents: LibraryObject) -> LibraryObject:
    """Scale latents from about unit variance, as in the pipelines, to the VAE's input range."""
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
