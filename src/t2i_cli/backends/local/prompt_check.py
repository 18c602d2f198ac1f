"""What prompts need on this machine, checked before a model is loaded."""

from pathlib import Path

from t2i_cli.errors import InputError, ModelError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import diffusers_folder
from t2i_cli.prompts.compel_prompt import compel_is_installed
from t2i_cli.request import ResolvedRequest

_CLIPS = ("text_encoder", "text_encoder_2")
_LAYERS = "num_hidden_layers"


def check_prompt_fields(request: ResolvedRequest, spec: ModelSpec, folder: Path) -> None:
    """Raise ModelError if compel is missing, InputError if more layers are left out than there are.

    `folder` has the model's configs, which is all that is read.
    """
    if request.prompt_syntax and not compel_is_installed():
        raise ModelError(
            f"--prompt-syntax {request.prompt_syntax} needs compel, which is not installed.",
            hint="`pip install 't2i-cli[prompts]'` brings it; --prompt-syntax plain needs nothing.",
        )
    if request.clip_skip is None:
        return
    configs = {name: diffusers_folder.component_config(folder, name) for name in _CLIPS}
    # Pipelines with two CLIPs begin with the layer before the last.
    own = 2 if configs[_CLIPS[1]] else 1
    for name, config in configs.items():
        layers = config.get(_LAYERS)
        most = layers - own + 2 if isinstance(layers, int) else None
        if most is not None and request.clip_skip > most:
            raise InputError(
                f"{spec.name} takes a CLIP skip of at most {most}: its {name} has {layers} layers.",
                field="clip_skip",
            )
