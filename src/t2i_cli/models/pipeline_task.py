"""What a pipeline class does other than make images from text alone, asked of its source."""

import ast
from functools import lru_cache
from inspect import Parameter

from t2i_cli.models import call_inputs, library_source
from t2i_cli.models.class_facts import PipelineFacts, SignatureParameters

_VIDEO_ARGUMENTS = {"num_frames", "video_length", "num_videos_per_prompt"}
_CONTROLLING_NETWORKS = {"controlnet", "adapter"}
"""Networks of the constructor that take an image of their own."""
_NEEDED_ARGUMENTS = {"prompt", "height", "num_inference_steps"}
_IMAGES = {"images", "image"}
_OUTPUTS = {
    "frames": "makes videos",
    "videos": "makes videos",
    "audios": "makes sound",
    "sequences": "makes text",
    "image_embeds": "makes embeddings for another pipeline",
    "image_embeddings": "makes embeddings for another pipeline",
    "rgb": "makes a depth map beside the picture",
}
"""What a pipeline makes, by the first field of its output."""


@lru_cache(maxsize=256)
def other_task(facts: PipelineFacts) -> str | None:
    """What the pipeline does or needs beyond images from text; `None` if a prompt alone may do."""
    output = _output_field(facts)
    if _VIDEO_ARGUMENTS & facts.call.keys():
        return _OUTPUTS["frames"]
    if output is not None and output not in _IMAGES:
        return _OUTPUTS.get(output, f"makes {output.replace('_', ' ')}")
    if required := _required(facts.call) - {"self", "prompt"}:
        return f"needs {_listed(required)}"
    if networks := _CONTROLLING_NETWORKS & _required(facts.init):
        return f"needs an image for its {_listed(networks)}"
    missing = _NEEDED_ARGUMENTS - facts.call.keys()
    needed = call_inputs.needed_input(facts) if "prompt" not in missing else None
    if needed is not None:
        return f"needs {needed or 'another input'}"
    return f"takes no {_listed(missing)}" if missing else None


def _required(parameters: SignatureParameters) -> set[str]:
    variable = {Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL}
    return {
        name
        for name, parameter in parameters.items()
        if parameter.default is Parameter.empty and parameter.kind not in variable
    }


def _listed(names: set[str]) -> str:
    return " and ".join(sorted(names))


def _output_field(facts: PipelineFacts) -> str | None:
    """The first field of the output that the call returns; `None` if the source does not say."""
    call = facts.method("__call__")
    for node in ast.walk(call) if call else ():
        match node:
            case ast.Return(value=ast.Call(func=ast.Name(id=name)) as made) if name.endswith(
                "Output"
            ):
                if made.keywords and not made.args:
                    return made.keywords[0].arg
                return _first_field(facts.module, name)
    return None


def _first_field(module: str, name: str) -> str | None:
    found = library_source.find_class(module, name)
    for statement in found.node.body if found and found.node else ():
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            return statement.target.id
    return None
