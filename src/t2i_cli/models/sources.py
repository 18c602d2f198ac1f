"""What a model consists of: a list of parts, with their classes, folders, files and weights.

The one place that knows it; descriptions, plans, checks and loading ask here.
"""

import os
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from t2i_cli.errors import ModelError
from t2i_cli.files import model_parts, weight_files
from t2i_cli.files.state_files import is_count
from t2i_cli.files.weight_files import WeightFiles
from t2i_cli.models import class_facts, composed_root, diffusers_folder


class SingleFile(NamedTuple):
    """A file that a part is read from; `whole` is whether it holds other parts as well."""

    path: Path
    whole: bool


class Part(NamedTuple):
    """One part of a pipeline: its name, its class, that class's library, and where it lies.

    Its folder holds its configs only where its weights are in a `file`.
    """

    name: str
    library: str
    cls: str
    folder: Path
    file: SingleFile | None = None

    @property
    def has_weights(self) -> bool:
        """Whether the part is a network, by its class; by its files if the class is not known."""
        known = class_facts.is_network(self.library, self.cls)
        if known is None:
            names = self.file_names()
            return weight_files.has_pickles(names) or self.weights("float32") is not None
        return known

    def file_names(self) -> list[str]:
        """The names of the files in its folder. Raises ModelError."""
        entries = diffusers_folder.folder_entries(self.folder)
        return [path.name for path in entries if os.path.isfile(path)]

    def weights(self, dtype: str) -> WeightFiles | None:
        """The names of its weights for a dtype, `None` if there are none. Raises ModelError."""
        if self.file:
            return None
        return weight_files.choose_weights(self.file_names(), dtype)

    def weight_paths(self, dtype: str) -> list[Path]:
        """The safetensors files that the libraries load for a dtype, shards included.

        Raises ModelError if there are none.
        """
        if self.file:
            return [self.file.path]
        folder, found = self.folder, self.weights(dtype)
        if found and found.whole:
            return [folder / found.whole[0]]
        if found and found.index:
            return shard_paths(folder / found.index)
        if found:
            raise ModelError(f"The model is incomplete: {folder} has no index of its weight files.")
        if weight_files.has_pickles(self.file_names()):
            raise ModelError(
                f"The weights in {folder} are pickle files only, which can run code when loaded.",
                hint="t2i loads safetensors; look for a safetensors copy of the model, or convert "
                "it.",
            )
        raise ModelError(f"The model is incomplete: {folder} holds no weights.")


def list_parts(folder: Path) -> list[Part]:
    """The parts that the model contains. Raises ModelError."""
    index = diffusers_folder.read_model_index(folder)
    files = _single_files(folder)
    return [
        Part(*entry, folder=folder / entry.name, file=files.get(entry.name))
        for entry in model_parts.present_entries(index)
    ]


def single_file_parts(folder: Path) -> list[Part]:
    """The parts that are read from single files. Raises ModelError."""
    return [part for part in list_parts(folder) if part.file]


def base_folder(folder: Path) -> Path:
    """The folder that a model was put together from; another one as it is. Raises ModelError."""
    return Path(str(_composition(folder).get("base", folder)))


def _single_files(folder: Path) -> dict[str, SingleFile]:
    """The single files of a folder that t2i has put together, by the parts in them."""
    return {
        name: SingleFile(Path(entry["file"]), bool(entry["whole"]))
        for name, entry in _composition(folder).get("files", {}).items()
    }


def _composition(folder: Path) -> diffusers_folder.JsonConfig:
    """What is noted of a folder that t2i has put together; empty of others' folders."""
    if not composed_root.is_composed(folder):
        return {}
    return diffusers_folder.read_json_object(folder / composed_root.COMPOSITION)


def absent_parts(folder: Path) -> list[str]:
    """The names of optional parts that the model does not contain. Raises ModelError."""
    return model_parts.absent_names(diffusers_folder.read_model_index(folder))


def networks(folder: Path, skip: Container[str] = ()) -> list[Part]:
    """The parts that have weights, without those named `skip`.

    Raises ModelError if a part has no folder.
    """
    found = []
    for part in list_parts(folder):
        if part.name in skip:
            continue
        if not os.path.isdir(part.folder):
            raise ModelError(f"The model in {folder} is incomplete: it has no {part.name} folder.")
        if part.has_weights:
            found.append(part)
    return found


def chosen_variants(folder: Path, dtype: str) -> dict[str, str]:
    """The variant of each part whose weights for a dtype are of one. Raises ModelError."""
    chosen = {part.name: part.weights(dtype) for part in list_parts(folder)}
    return {name: found.variant for name, found in chosen.items() if found and found.variant}


def used_class_path(folder: Path) -> list[str]:
    """The pipeline's class that is run, after its module if that is the model's own.

    Of a class for another task whose weights make images from text, the text-to-image class, as
    diffusers' AutoPipelineForText2Image has it. Raises ModelError.
    """
    path = diffusers_folder.pipeline_class_path(folder)
    if len(path) == 2:
        return path
    used = class_facts.text_to_image_class(path[0])
    _check_text_to_image_weights(folder, path[0], exchanged=used != path[0])
    return [used]


def exchanged_class(folder: Path) -> str | None:
    """A sentence if the model names another pipeline class than is run. Raises ModelError."""
    named, used = diffusers_folder.pipeline_class_path(folder)[-1], used_class_path(folder)[-1]
    if named == used:
        return None
    return f"The model names {named}; its weights make images from text as {used}."


def _check_text_to_image_weights(folder: Path, named: str, *, exchanged: bool) -> None:
    """Raise ModelError if the weights of a model for another task need more than a text."""
    if exchanged and diffusers_folder.read_model_index(folder).get("requires_aesthetics_score"):
        raise ModelError(
            f"The model in {folder} is a refiner ({named}), which improves given images and makes "
            "none from text.",
            hint="Name the base model that it refines.",
        )
    name, config = diffusers_folder.denoiser_config(folder)
    decoders = [diffusers_folder.component_config(folder, each) for each in ("vae", "movq")]
    latent = next((each.get("latent_channels", 4) for each in decoders if each), None)
    taken = config.get("in_channels")
    if name != "unet" or not is_count(taken) or not is_count(latent):
        return
    if taken == 2 * latent + 1 or (exchanged and taken > latent):
        raise ModelError(
            f"The model in {folder} is an inpainting model ({named}): its UNet takes {taken} "
            f"channels, those of a given image and mask beside the {latent} of the new image.",
            hint="It fills a part of a given image; name its base model to make images from text.",
        )


def shard_paths(index: Path) -> list[Path]:
    """The files that an index of shards names. Raises ModelError."""
    try:
        found = diffusers_folder.read_json_object(index).get("weight_map")
    except FileNotFoundError:
        found = None
    names = list(found.values()) if isinstance(found, dict) else []
    # diffusers would also load what lies elsewhere.
    if not names or not all(map(weight_files.is_plain_name, names)):
        raise ModelError(f"{index} is damaged: it names no weight files.")
    return [index.parent / name for name in sorted(set(names))]
