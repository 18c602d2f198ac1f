"""Which classes of networks the libraries make from single files, and of which formats."""

from t2i_cli.models import class_facts
from t2i_cli.models.sources import Part

_MODULE = "diffusers.loaders.single_file_model"
_TABLE = "SINGLE_FILE_LOADABLE_CLASSES"
_GGUF_ENCODERS = {
    "T5EncoderModel": ("t5", "t5encoder"),
    "Qwen3Model": ("qwen3",),
    "Qwen3ForCausalLM": ("qwen3",),
    "Gemma2Model": ("gemma2",),
}
"""Text encoders that transformers reads from GGUF, with the architectures that files name.

By GGUF_CONFIG_MAPPING of transformers 5.23's integrations/ggml.py; each is tested.
"""


def is_converted(part: Part) -> bool:
    """Whether the libraries make a part of the tensors of a checkpoint."""
    if part.library != "diffusers":
        return part.library == "transformers" and part.name.startswith("text_encoder")
    known = class_facts.table_keys(_MODULE, _TABLE)
    # Other classes have the method in vain.
    return part.cls in known if known else class_facts.has_method(part.cls, "from_single_file")


def gguf_architectures(part: Part) -> tuple[str, ...]:
    """The architectures of GGUF files that a text encoder is read from."""
    return _GGUF_ENCODERS.get(part.cls, ())
