"""Google's ready-made containers of Model Garden, and which pipelines each serves.

From Google's notebooks in GoogleCloudPlatform/vertex-ai-samples, notebooks/community/model_garden,
read in November 2026 (S; whether they serve is not tried here): model_garden_pytorch_stable_\
diffusion_xl_1_0.ipynb and its like (`text-to-image`), model_garden_pytorch_qwen_image.ipynb
(`text-to-image-qwen`), model_garden_pytorch_flux.ipynb (xDiT's own container).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from t2i_cli.errors import InputError
from t2i_cli.models import diffusers_folder
from t2i_cli.vertex.model_source import ModelSource

_IMAGES = "us-docker.pkg.dev/deeplearning-platform-release/vertex-model-garden/"


@dataclass(frozen=True, kw_only=True)
class GardenContainer:
    """A container's image, its TASK, and what else its environment must hold."""

    image: str
    task: str
    environment: Mapping[str, str] = field(default_factory=dict)


DIFFUSERS = GardenContainer(
    image=f"{_IMAGES}pytorch-inference.cu125.0-4.ubuntu2204.py310", task="text-to-image"
)
_QWEN = GardenContainer(image=DIFFUSERS.image, task="text-to-image-qwen")
_XDIT = GardenContainer(
    image=f"{_IMAGES}xdit-serve.cu125.0-2.ubuntu2204.py310",
    task="text-to-image",
    environment={"N_GPUS": "1", "USE_TORCH_COMPILE": "true"},
)
BY_PIPELINE: Mapping[str, GardenContainer] = {
    "StableDiffusionPipeline": DIFFUSERS,
    "StableDiffusionXLPipeline": DIFFUSERS,
    "QwenImagePipeline": _QWEN,
    "FluxPipeline": _XDIT,
}
"""By diffusers' class of the pipeline."""


def find_container(source: ModelSource) -> GardenContainer:
    """The container that serves a model; of an unknown pipeline the one for diffusers' pipelines.

    Raises InputError for a pipeline that none is known to serve.
    """
    pipeline = _pipeline(source)
    if pipeline is None:
        return DIFFUSERS
    if found := BY_PIPELINE.get(pipeline):
        return found
    raise InputError(
        f"None of Google's ready-made containers is known to serve {source.label_name} "
        f"({pipeline}).",
        hint="--serving t2i does; `t2i remote build` makes its image.",
        field="serving",
    )


def _pipeline(source: ModelSource) -> str | None:
    """The class of the model's pipeline, `None` where only the Hub or a bucket tells it."""
    if source.spec.pipeline or source.folder is None:
        return source.spec.pipeline
    name = diffusers_folder.read_model_index(source.folder).get("_class_name")
    return name if isinstance(name, str) else None
