"""Small made-up diffusers repositories: the files and names of real ones, not their content."""

import json
import random

HALF = "unet/diffusion_pytorch_model.fp16.safetensors"
FULL = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def repository() -> dict[str, bytes]:
    """A Stable Diffusion repository with all that real ones carry beside what is needed."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    weights = random.Random(1)  # noqa: S311 - content, not a secret
    return {
        "model_index.json": json.dumps(index).encode(),
        "README.md": b"# A model",
        "v1-pruned.safetensors": b"whole checkpoint",
        "scheduler/scheduler_config.json": b"{}",
        "tokenizer/vocab.json": b"{}",
        "tokenizer/merges.txt": b"#version: 0.2",
        "text_encoder/config.json": b'{"architectures": ["CLIPTextModel"]}',
        TEXT: weights.randbytes(200_000),
        "text_encoder/pytorch_model.bin": b"pickle",
        "unet/config.json": b'{"_class_name": "UNet2DConditionModel"}',
        FULL: weights.randbytes(400_000),
        HALF: weights.randbytes(100_000),
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "unet/diffusion_flax_model.msgpack": b"flax",
        "unet/model.onnx": b"onnx",
        "safety_checker/model.safetensors": b"left out",
        "vae_decoder/model.onnx": b"onnx",
    }


CONFIGS = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "text_encoder/config.json",
    "unet/config.json",
}
"""Of `repository()`, what describes the pipeline."""
