"""TorchServe handler inside `model.mar`: a diffusers pipeline, one image per instance.

It must not import t2i, which Google's container lacks. An instance is an element of
`{"instances": [...]}`, unpacked by the JSON envelope; the handler contract is at
https://docs.pytorch.org/serve/.
"""

import base64
import io
import os
import random
import re
import time
from pathlib import Path
from typing import Any

# Repeated here, since t2i's table of fields cannot be imported.
NUMBERS = {
    "seed": ("seed", int),
    "steps": ("num_inference_steps", int),
    "num_inference_steps": ("num_inference_steps", int),
    "guidance_scale": ("guidance_scale", float),
    "width": ("width", int),
    "height": ("height", int),
}
"""Field → pipeline argument and type; numbers arrive as doubles, a seed also as text."""
NO_SEED = -1
"""Stands for no seed, as AUTOMATIC1111 and its clients write it."""
TEXTS = {"prompt", "text", "negative_prompt", "format"}
ENCODABLE_FORMATS = {"png", "jpeg", "webp"}
GPU_VARIABLES = {
    "AIP_ACCELERATOR_TYPE": ".",
    "AIP_MACHINE_TYPE": r"(a[2-9]|g[2-9])x?-",
    "T2I_DEVICE": "cuda",
}
"""Variables of the container, and how their values begin where there is a GPU to compute on."""


class Handler:
    """One worker's pipeline; TorchServe calls `initialize` once and `handle` for each batch."""

    def initialize(self, context: Any) -> None:  # noqa: ANN401 - TorchServe's own type
        """Load the weights next to this file, onto the worker's GPU if it has one."""
        import diffusers
        import torch
        import transformers.dynamic_module_utils as remote_code

        properties = context.system_properties
        gpu = properties.get("gpu_id")
        check_accelerator(usable=torch.cuda.is_available() and gpu is not None)
        self.device = f"cuda:{gpu}" if torch.cuda.is_available() and gpu is not None else "cpu"
        dtype = torch.float32 if self.device == "cpu" else torch.float16
        weights = Path(properties["model_dir"]) / "weights"
        # With 0 transformers refuses to run a model's own code, where it would prompt otherwise.
        remote_code.TIME_OUT_REMOTE_CODE = 0
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            weights, use_safetensors=True, trust_remote_code=False
        )
        self.pipeline: Any = pipeline.to(self.device, dtype)
        self.pipeline.set_progress_bar_config(disable=True)
        self.generation_info = {
            "pipeline": type(self.pipeline).__name__,
            "device": self.device,
            "dtype": str(dtype).removeprefix("torch."),
            "libraries": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        }

    def handle(self, data: list[dict[str, Any]], context: object) -> list[dict[str, Any]]:
        """One prediction per instance; an invalid instance gets an `error` in its place."""
        return [self._predict(instance) for instance in data]

    def _predict(self, instance: dict[str, Any]) -> dict[str, Any]:
        try:
            arguments, format = parse_instance(instance)
        except ValueError as error:
            return {"error": {"code": "bad_input", "message": str(error), "hint": None}}
        import torch

        started = time.monotonic()
        seed = arguments.pop("seed")
        generator = torch.Generator("cpu").manual_seed(seed)
        image = self.pipeline(**arguments, generator=generator).images[0]
        seconds = time.monotonic() - started
        stream = io.BytesIO()
        image.convert("RGB").save(stream, format, **({} if format == "png" else {"quality": 95}))
        made = dict(arguments) | {"seed": seed, "width": image.width, "height": image.height}
        if "num_inference_steps" in made:
            made["steps"] = made.pop("num_inference_steps")
        return {
            "image": base64.b64encode(stream.getvalue()).decode(),
            "format": format,
            "t2i": {"request": made, "lock": self.generation_info, "seconds": seconds},
        }


def check_accelerator(*, usable: bool) -> None:
    """Raise RuntimeError, so that no worker starts, where the GPU that there is cannot be used."""
    for variable, pattern in GPU_VARIABLES.items():
        value = os.environ.get(variable, "")
        if not usable and re.match(pattern, value):
            raise RuntimeError(
                f"{variable} is {value!r}, and torch can use no GPU in this container."
            )


def parse_instance(instance: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The pipeline's arguments, always with a seed, and the image format; raises ValueError."""
    if not isinstance(instance, dict):
        raise ValueError("An instance must be an object with a prompt.")  # noqa: TRY004
    if unknown := set(instance) - TEXTS - set(NUMBERS):
        raise ValueError(f"This server takes no {', '.join(sorted(unknown))}.")
    prompt = instance.get("prompt", instance.get("text"))
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("There is no prompt.")
    arguments: dict[str, Any] = {"prompt": prompt}
    if instance.get("negative_prompt"):
        arguments["negative_prompt"] = str(instance["negative_prompt"])
    for field, (argument, kind) in NUMBERS.items():
        if instance.get(field) is None:
            continue
        try:
            number = float(instance[field])
            # Parsed from text where given so: a double would lose a large seed's last digits.
            arguments[argument] = int(instance[field]) if kind is int else number
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{field} must be a number, not {instance[field]!r}.") from error
        if kind is int and number != int(number):
            raise ValueError(f"{field} must be a whole number, not {instance[field]!r}.")
    if arguments.get("seed", NO_SEED) == NO_SEED:
        arguments["seed"] = random.randrange(2**32)  # noqa: S311 - no secret
    format = str(instance.get("format") or "jpeg").lower()
    if format not in ENCODABLE_FORMATS:
        raise ValueError(f"format must be png, jpeg or webp, not {format}.")
    return arguments, format
