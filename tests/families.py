"""The text-to-image classes of the installed diffusers, generated from the library itself.

Each is one that the tests build small (BUILDERS), or is left out with a reason (LEFT_OUT).
"""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

from t2i_cli.models.libraries import LibraryObject
from tests import (
    tiny_editing_models,
    tiny_models,
    tiny_older_families,
    tiny_prx,
    tiny_transformers,
    tiny_two_stage,
    tiny_unets,
    tiny_vision_language,
)

_OTHER_OUTPUT = {"num_frames", "video_length", "num_videos_per_prompt", "video"}
_OTHER_INPUT = {"strength", "mask_image", "control_image", "control_mask", "gligen_images"}
_OTHER_NETWORK = {"controlnet", "adapter"}


def exported_pipelines() -> Iterator[LibraryObject]:
    """Every pipeline class that diffusers exports, placeholders of missing packages included."""
    import diffusers

    for name in dir(diffusers):
        cls = getattr(diffusers, name) if "Pipeline" in name else None
        if not inspect.isclass(cls) or cls is diffusers.DiffusionPipeline:
            continue
        if is_placeholder(cls) or issubclass(cls, diffusers.DiffusionPipeline):
            yield cls


def is_placeholder(cls: LibraryObject) -> bool:
    """Whether the class stands for one whose packages are not installed."""
    return bool(getattr(cls, "_backends", None))


def text_to_image_classes() -> set[str]:
    """The names of the classes whose call takes a prompt and requires nothing else.

    Videos, sound, and tasks that show by an input or a network of their own are no images from
    text, unless AutoPipelineForText2Image says so. A placeholder has no signature: all are listed,
    so that each is named.
    """
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    return {cls.__name__ for cls in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()} | {
        cls.__name__
        for cls in exported_pipelines()
        if is_placeholder(cls) or _takes_only_a_prompt(cls)
    }


def _takes_only_a_prompt(cls: LibraryObject) -> bool:
    parameters = inspect.signature(cls.__call__).parameters
    required = {
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}
    }
    return (
        "prompt" in parameters
        and required <= {"self", "prompt"}
        and not (_OTHER_OUTPUT | _OTHER_INPUT) & parameters.keys()
        and not any("audio" in name for name in parameters)
        and not _OTHER_NETWORK & inspect.signature(cls.__init__).parameters.keys()
    )


_TEXT = "makes text"
_SOUND = "makes sound"
_EMBEDDINGS = "makes embeddings for a second pipeline"
_CONTROL = "needs a control image, though its signature does not say so"
_VIDEOS = "makes videos"
_NEEDS_IMAGE = "needs an input image, though its signature does not say so"
_UNBUILT = "makes images from text as well as from images; no tiny pipeline is built yet"
_ONNX = "needs onnx, and networks that are not safetensors"
_SIZELESS = "has no height: its networks fix the size"
_INPUT_MISSING = "needs another input, though its signature does not say so"
_LOST_CLASS = "is not loaded by diffusers 0.42: a component's class moved to `deprecated`"
_SENTENCEPIECE = "needs sentencepiece, and a tokenizer that only it makes"

LEFT_OUT: dict[str, str] = {
    "AltDiffusionPipeline": _LOST_CLASS,
    "AudioDiffusionPipeline": _SOUND,
    "BriaFiboEditPipeline": _UNBUILT,
    "CogView4ControlPipeline": _CONTROL,
    "ConsisIDPipeline": _VIDEOS,
    "DiffusionGemmaPipeline": _TEXT,
    "FluxControlNetPipeline": _CONTROL,
    "FluxControlPipeline": _CONTROL,
    "HeliosPipeline": _VIDEOS,
    "HeliosPyramidPipeline": _VIDEOS,
    "HunyuanImageRefinerPipeline": _NEEDS_IMAGE,
    "IFSuperResolutionPipeline": _NEEDS_IMAGE,
    "JoyImageEditPipeline": _UNBUILT,
    "JoyImageEditPlusPipeline": _UNBUILT,
    "KandinskyPriorPipeline": _EMBEDDINGS,
    "KandinskyV22PriorPipeline": _EMBEDDINGS,
    "KolorsImg2ImgPipeline": _NEEDS_IMAGE,
    "KolorsPAGPipeline": _SENTENCEPIECE,
    "KolorsPipeline": _SENTENCEPIECE,
    "LLaDA2Pipeline": _TEXT,
    "LongCatImageEditPipeline": _NEEDS_IMAGE,
    "OnnxStableDiffusionImg2ImgPipeline": _ONNX,
    "OnnxStableDiffusionInpaintPipeline": _ONNX,
    "OnnxStableDiffusionInpaintPipelineLegacy": _ONNX,
    "OnnxStableDiffusionPipeline": _ONNX,
    "OnnxStableDiffusionUpscalePipeline": _ONNX,
    "QwenImageControlNetPipeline": _CONTROL,
    "QwenImageEditPipeline": _NEEDS_IMAGE,
    "QwenImageEditPlusPipeline": _NEEDS_IMAGE,
    "QwenImageLayeredPipeline": _NEEDS_IMAGE,
    "ShapEPipeline": "makes shapes of three dimensions",
    "SpectrogramDiffusionPipeline": _SOUND,
    "StableAudio3Pipeline": _SOUND,
    "StableCascadeCombinedPipeline": _LOST_CLASS,
    "StableCascadePriorPipeline": _EMBEDDINGS,
    "StableDiffusion3ControlNetPipeline": _CONTROL,
    "StableDiffusionControlNetPAGPipeline": _CONTROL,
    "StableDiffusionControlNetPipeline": _CONTROL,
    "StableDiffusionGLIGENPipeline": _INPUT_MISSING,
    "StableDiffusionInstructPix2PixPipeline": _NEEDS_IMAGE,
    "StableDiffusionLDM3DPipeline": "makes a depth map beside the picture",
    "StableDiffusionLatentUpscalePipeline": _NEEDS_IMAGE,
    "StableDiffusionOnnxPipeline": _ONNX,
    "StableDiffusionPix2PixZeroPipeline": _INPUT_MISSING,
    "StableDiffusionUpscalePipeline": _NEEDS_IMAGE,
    "StableDiffusionXLControlNetPAGPipeline": _CONTROL,
    "StableDiffusionXLControlNetPipeline": _CONTROL,
    "StableDiffusionXLControlNetUnionPipeline": _CONTROL,
    "StableDiffusionXLInstructPix2PixPipeline": _NEEDS_IMAGE,
    "StableUnCLIPImg2ImgPipeline": _NEEDS_IMAGE,
    "UnCLIPPipeline": _SIZELESS,
    "UniDiffuserPipeline": "its text decoder has shared tensors, which safetensors does not write",
    "VQDiffusionPipeline": _SIZELESS,
    "VersatileDiffusionTextToImagePipeline": _LOST_CLASS,
    "WuerstchenCombinedPipeline": _LOST_CLASS,
    "WuerstchenPriorPipeline": _EMBEDDINGS,
    "ZImageControlNetInpaintPipeline": _CONTROL,
    "ZImageControlNetPipeline": _CONTROL,
}
"""Classes that the signature alone takes for text-to-image, or says nothing of: why not built."""

PACKAGES: dict[str, str] = {
    "Cosmos2TextToImagePipeline": "cosmos_guardrail",
    "OmniGenPipeline": "torchvision",
    "PRXPipeline": "ftfy",
    "PRXPixelPipeline": "ftfy",
    "QwenImage21Pipeline": "torchvision",
}
"""Classes that plain diffusers runs only with another package, which is not in the tests' extra."""

_TWO_REPOSITORIES = "its prior and its decoder are two repositories on the Hub"

REFUSED: dict[str, str] = {
    "KandinskyCombinedPipeline": _TWO_REPOSITORIES,
    "KandinskyV22CombinedPipeline": _TWO_REPOSITORIES,
}
"""Classes that diffusers runs and t2i may refuse by name: why."""

PROCESSORS = {"QwenImage21Pipeline": "Qwen3VLProcessor"}
"""Processors that model_index.json names although they cannot be saved without torchvision."""

_EARLIER = {
    "AuraFlowPipeline": "aura-flow",
    "BriaPipeline": "bria",
    "ChromaPipeline": "chroma",
    "CogView4Pipeline": "cogview4",
    "Flux2KleinPipeline": "flux2-klein",
    "FluxKontextPipeline": "flux-kontext",
    "FluxPipeline": "flux",
    "HiDreamImagePipeline": "hidream",
    "HunyuanDiTPipeline": "hunyuan-dit",
    "LatentConsistencyModelPipeline": "lcm",
    "LongCatImagePipeline": "longcat",
    "Lumina2Pipeline": "lumina2",
    "PixArtAlphaPipeline": "pixart",
    "PixArtSigmaPipeline": "pixart-sigma",
    "QwenImagePipeline": "qwen-image",
    "SanaPipeline": "sana",
    "SanaSprintPipeline": "sana-sprint",
    "StableDiffusion3Pipeline": "sd3",
    "StableDiffusionXLPipeline": "sdxl",
    "ZImagePipeline": "z-image",
}


def builders() -> dict[str, Callable[[], LibraryObject]]:
    """What makes the tiny pipeline of each class that is not left out."""
    families = tiny_models.families()
    return {
        **{name: families[family] for name, family in _EARLIER.items()},
        **tiny_unets.builders(),
        **tiny_older_families.builders(),
        **tiny_two_stage.builders(),
        **tiny_transformers.builders(),
        **tiny_prx.builders(),
        **tiny_editing_models.builders(),
        **tiny_vision_language.builders(),
    }


def save(name: str, folder: Path) -> Path:
    """The folder of a class's tiny pipeline, made if it is not there."""
    if not folder.exists():
        tiny_models.save_pipeline(builders()[name], folder)
        if name in PROCESSORS:
            processor = ["transformers", PROCESSORS[name]]
            tiny_models.edit_json(folder / "model_index.json", processor=processor)
    return folder
