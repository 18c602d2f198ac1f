"""The instruction that some pipelines put before a prompt, and how much of both is encoded."""

from collections.abc import Mapping
from inspect import signature

from t2i_cli.models import prompt_support
from t2i_cli.models.libraries import LibraryObject

LENGTH = "max_sequence_length"
_SANAS_INSTRUCTION = "complex_human_instruction"
_LUMINAS_INSTRUCTION = "system_prompt"
_LUMINAS_SEPARATOR = " <Prompt Start> "


def prompt_instruction(pipe: LibraryObject, arguments: Mapping[str, object]) -> str:
    """What the pipeline puts before a prompt, in a call with `arguments`; a negative has none."""
    if _family(pipe) in prompt_support.SANA:
        lines = _argument(pipe, arguments, _SANAS_INSTRUCTION)
        return "\n".join(lines) if isinstance(lines, list | tuple | str) else ""
    if _family(pipe) in prompt_support.LUMINA2:
        system = arguments.get(_LUMINAS_INSTRUCTION)
        return (pipe.system_prompt if system is None else str(system)) + _LUMINAS_SEPARATOR
    return ""


def read_tokens(pipe: LibraryObject, arguments: Mapping[str, object]) -> int | None:
    """The tokens that the pipeline's `max_sequence_length` lets it take; `None` if it has none."""
    if LENGTH not in signature(pipe.__call__).parameters:
        return None
    limit = _argument(pipe, arguments, LENGTH)
    return int(limit) if isinstance(limit, int | float) else None


def encoded_tokens(pipe: LibraryObject, instruction: str, limit: int) -> int:
    """The tokens that are encoded, of which the pipeline takes `limit`."""
    if not instruction or _family(pipe) not in prompt_support.SANA:
        return limit
    # As in its encode_prompt(): two tokens are counted for the marks of beginning.
    return len(pipe.tokenizer.encode(instruction, verbose=False)) + limit - 2


def in_encoded_case(pipe: LibraryObject, text: str) -> str:
    """The text in lower case where the pipeline encodes it so."""
    return text.lower() if _family(pipe) in prompt_support.SANA else text


def _argument(pipe: LibraryObject, arguments: Mapping[str, object], name: str) -> object:
    given = arguments.get(name)
    return signature(pipe.__call__).parameters[name].default if given is None else given


def _family(pipe: LibraryObject) -> str:
    return type(pipe).__name__
