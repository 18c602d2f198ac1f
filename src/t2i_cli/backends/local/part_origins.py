"""Tells which parts of a model that is a single file come from it, and which from its base."""

import os
from typing import TYPE_CHECKING

from t2i_cli.models import catalog, single_file_parts, sources
from t2i_cli.models.checkpoint_file import read_checkpoint

if TYPE_CHECKING:
    from t2i_cli.backends.local.load_target import LoadTarget


def describe_origins(target: "LoadTarget") -> str | None:
    """A sentence on where the parts come from; `None` if the file has all that are not replaced.

    Raises ModelError.
    """
    composition = target.spec.composition
    file = catalog.file_named(target.spec.name) if target.spec.file_digest else None
    if composition is None or file is None:
        return None
    named = {each.part: os.path.abspath(each.path) for each in composition.overrides}
    own = [name for name, path in named.items() if path == os.path.abspath(file)]
    parts = [part for part in sources.networks(target.folder) if part.name not in named]
    if not parts:
        return None
    unread = [part.name for part in single_file_parts.parts_inside(read_checkpoint(file), parts)]
    base = composition.repo or (composition.folder.name if composition.folder else "its base")
    others = ", ".join(part.name for part in parts)
    sentence = f"Read from {file.name}: {', '.join(own)}; from {base}: {others}."
    if unread:
        sentence += f" diffusers does not read the file's {', '.join(unread)}."
    return sentence
