"""Finds and downloads one file of a LoRA or an embedding from a repository of the Hub."""

from pathlib import Path

from t2i_cli.errors import ModelError
from t2i_cli.events import OnEvent
from t2i_cli.files.weight_files import PICKLES
from t2i_cli.hub import repository_file

_ENDING = ".safetensors"
_NAMES = ("pytorch_lora_weights", "adapter_model", "learned_embeds")
"""Names under which diffusers and PEFT save, which are taken before others."""


def find_adapter_file(
    repo: str, name: str | None, *, revision: str | None, offline: bool
) -> tuple[Path | None, str | None, int]:
    """Where a file is in the cache, or its SHA-256 and the bytes to download. Raises T2IError.

    A file whose SHA-256 the Hub does not tell is in the cache afterwards.
    """
    found = repository_file.find_file(
        repo, name or _choose_file, revision=revision, offline=offline
    )
    return found.path, found.sha256, 0 if found.path else found.size


def fetch_adapter_file(
    repo: str, name: str | None, *, revision: str | None, offline: bool, on_event: OnEvent
) -> Path:
    """The file in the cache, downloaded if it is not there. Raises T2IError."""
    return repository_file.fetch_file(
        repo, name or _choose_file, revision=revision, offline=offline, on_event=on_event
    )


def _choose_file(repo: str, files: list[str]) -> str:
    """The file that can be meant where none is named. Raises ModelError."""
    found = [path for path in files if path.endswith(_ENDING) and "/" not in path]
    for known in _NAMES:
        if (name := f"{known}{_ENDING}") in files:
            return name
    if len(found) == 1:
        return found[0]
    if "model_index.json" in files:
        raise ModelError(f"{repo} is a whole model, and no LoRA.", hint="-m takes it.")
    if not found:
        pickles = any(path.endswith(PICKLES) for path in files)
        told = "pickle files only, which can run code" if pickles else "no safetensors file"
        raise ModelError(f"{repo} has {told}; adapters are loaded from safetensors.")
    raise ModelError(
        f"{repo} has {len(found)} files that may be meant.",
        hint=f"Name one: {repo}/{found[0]}. {repository_file.listed_files(found)}",
    )
