"""By which method a part's weights were quantised when they were saved, before they are loaded."""

from t2i_cli.models import diffusers_folder, single_file_parts
from t2i_cli.models.sources import Part

_MAX_NAME = 40


def saved_method(part: Part) -> str | None:
    """The method as the part's config or its file's format has it; `None` if it is not quantised.

    Raises ModelError for a damaged config.
    """
    if part.file and single_file_parts.is_gguf(part.file.path):
        return "gguf"
    config = diffusers_folder.component_config(part.folder.parent, part.name)
    found = config.get("quantization_config")
    if not isinstance(found, dict):
        return None
    # Early versions of bitsandbytes' config have no method.
    return str(found.get("quant_method", "bitsandbytes"))[:_MAX_NAME]
