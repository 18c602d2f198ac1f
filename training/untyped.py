"""Classes of diffusers as values of any type: mypy cannot follow what they hold."""

from typing import Any, TypeAlias

import diffusers

Untyped: TypeAlias = Any

AutoencoderKL: Untyped = diffusers.AutoencoderKL
DDPMScheduler: Untyped = diffusers.DDPMScheduler
DPMSolverMultistepScheduler: Untyped = diffusers.DPMSolverMultistepScheduler
StableDiffusionPipeline: Untyped = diffusers.StableDiffusionPipeline
UNet2DConditionModel: Untyped = diffusers.UNet2DConditionModel
