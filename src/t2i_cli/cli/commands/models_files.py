"""`t2i models show FILE` and `t2i models convert`: single files of weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2i_cli.cli.options import JsonOpt, QuietOpt, VerboseOpt
from t2i_cli.errors import ModelError
from t2i_cli.files.user_paths import expand_home
from t2i_cli.terminal.console import console, escape_controls, format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from t2i_cli.events import OnEvent
    from t2i_cli.models.checkpoint_file import CheckpointFile
    from t2i_cli.models.checkpoint_metadata import MakerWords
    from t2i_cli.models.composed_model import PartSources
    from t2i_cli.models.hub_sources import HubSource
    from t2i_cli.models.weight_sources import WeightSource

_USED_BESIDE_MODELS = {"vae", "text_encoder", "lora", "embedding"}
"""Kinds of files that belong to no base of their own."""
_MAX_NAMES = 8
"""Of what was left out of a converted file, as many names are told."""


def convert(
    file: Annotated[Path, typer.Argument(help="A pickle: .ckpt, .pt, .pth or .bin.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The new file. [default: FILE, as .safetensors]"),
    ] = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
    verbose: VerboseOpt = False,
) -> None:
    """Write a pickle's weights to a safetensors file; nothing that the pickle names is run."""
    console.configure(json=json, quiet=quiet, verbose=verbose)
    from t2i_cli.models import pickle_conversion

    converted = pickle_conversion.convert_pickle(
        Path(expand_home(str(file))), Path(expand_home(str(output))) if output else None
    )
    found = converted.file
    if json:
        record = {"path": str(found.path), "kind": found.kind, "family": found.family}
        contents = {"tensors": len(found.tensors), "left_out": dict(converted.left_out)}
        console.result_json(record | contents)
        return
    console.result(str(found.path))
    if names := list(converted.left_out):
        more = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
        console.note(f"Left out, since it is no tensor: {', '.join(names[:_MAX_NAMES])}{more}.")


def show_file(name: str, revision: str | None, *, json: bool, own: "Mapping[str, object]") -> None:
    """Print what a file of weights is, by its header, and its hashes. Raises T2IError.

    The hashes are left out of one in a bucket that is not fetched yet. `own` is the record of the
    user's own name for it, empty without one.
    """
    from t2i_cli.models import checkpoint_metadata, file_digests

    source = _weight_source(name, revision, offline=False)
    with source.named():
        file = source.read_checkpoint()
        digest = source.digest()
        words = checkpoint_metadata.read_maker_words(file.metadata)
        record = _record(file, words) | {"file": source.shown}
    if digest:
        record |= {"autov2": file_digests.autov2(digest), "sha256": digest}
    if json:
        # What the name stands for takes the place of the family's title.
        console.result_json(record | dict(own))
        return
    for label, value in record.items():
        if text := _text(label, value):
            # The file is another's, and its text could hold control characters.
            console.result(f"{label.replace('_', ' ')}: {escape_controls(text)}")


def _record(file: "CheckpointFile", words: "MakerWords") -> dict[str, object]:
    """What is known of a file, but its hashes, as `--json` prints it."""
    from t2i_cli.models import checkpoint_contents, checkpoint_task

    adapter = file.adapter
    record: dict[str, object] = {
        "file": str(file.path),
        "format": file.format,
        "kind": file.kind,
        "family": file.family,
        "model": checkpoint_task.family_title(file.family),
        "parts": list(file.parts),
        "dtypes": file.dtypes,
        "quantization": file.quantization,
        "size_bytes": file.bytes,
        "tensors": len(file.tensors),
        "latent_channels": (
            checkpoint_contents.latent_channels(file.tensors) if file.kind == "vae" else None
        ),
        "adapter_format": adapter.format if adapter else None,
        "algorithms": list(adapter.algorithms) if adapter else [],
        "modules": adapter.modules if adapter else None,
        "rank": list(adapter.ranks) if adapter and adapter.ranks else None,
        "title": words.title,
        "base_model": words.base_model,
        "few_steps": words.few_steps,
        "trigger_phrase": words.trigger_phrase,
        "frequent_tags": dict(words.frequent_tags),
        "text_to_image": True,
        "note": None,
    }
    try:
        checkpoint_task.check_text_to_image(file)
    except ModelError as error:
        record |= {"text_to_image": False, "note": error.message.removeprefix(f"{file.path} ")}
    return record


def _text(label: str, value: object) -> str:
    """A value for people; empty where there is none."""
    if label == "size_bytes" and isinstance(value, int):
        return format_bytes(value)
    if label == "frequent_tags" and isinstance(value, dict):
        return ", ".join(f"{tag} ({count})" for tag, count in value.items())
    if label == "dtypes" and isinstance(value, dict):
        return ", ".join(value)
    if label == "rank" and isinstance(value, list):
        return str(value[0]) if value[0] == value[1] else f"{value[0]} to {value[1]}"
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _weight_source(name: str, revision: str | None, *, offline: bool) -> "WeightSource":
    """The file of weights of that name. Raises T2IError."""
    from t2i_cli.models import catalog, weight_sources

    name, revision = catalog.parse_address(name, revision)
    found = weight_sources.find_weight_file(name, revision, offline=offline)
    if found is None:
        raise catalog.unknown_model(name)
    return found


def path_of_file(name: str, revision: str | None) -> Path:
    """Where a file of weights lies on this machine. Raises T2IError."""
    return _weight_source(name, revision, offline=True).path


def pull_file(name: str, revision: str | None, parts: "PartSources", *, json: bool) -> None:
    """Download a file of the Hub, and the configs and parts that a model in it is used with.

    Raises T2IError.
    """
    from t2i_cli.backends.local import device
    from t2i_cli.models import catalog, composed_model, diffusers_folder, weight_sources
    from t2i_cli.models.model_files import ModelFiles
    from t2i_cli.terminal.progress import Progress

    name, revision = catalog.parse_address(name, revision)
    with Progress(console, 1) as progress:
        source = weight_sources.find_weight_file(name, revision, offline=False)
        if source and source.hub:
            with source.named():
                kind = source.read_checkpoint().kind
            if kind in _USED_BESIDE_MODELS:
                _print_path(name, _fetch_file(source.hub, progress), json=json)
                return
        spec = composed_model.resolve_with_parts(
            name, revision, parts, offline=False, trust_remote_code=False
        )
        files = ModelFiles(spec, offline=False)
        folder = files.config_folder()
        transformer = diffusers_folder.denoiser_config(folder)[0] == "transformer"
        dtype = device.choose_dtype(device.list_devices()[0], None, transformer=transformer)
        folder = files.download(dtype, progress) or folder
    _print_path(name, folder, json=json)


def _fetch_file(source: "HubSource", progress: "OnEvent") -> Path:
    from t2i_cli.hub import repository_file

    return repository_file.fetch_file(
        source.repo,
        str(source.file),
        revision=source.revision,
        offline=False,
        on_event=progress,
    )


def _print_path(name: str, path: Path, *, json: bool) -> None:
    if json:
        console.result_json({"model": name, "path": str(path)})
    else:
        console.result(str(path))
