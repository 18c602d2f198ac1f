"""`t2i models`: the catalogue, and downloaded models."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2i_cli.cli.commands import models_buckets, models_files, models_own
from t2i_cli.cli.option_groups import command, examples
from t2i_cli.cli.options import JsonOpt, QuietOpt, RevisionOpt, YesOpt
from t2i_cli.errors import InputError, ModelError, StorageError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import bucket_models, catalog, diffusers_folder, weight_sources, weights
from t2i_cli.models.hub_sources import HubSource, parse_source
from t2i_cli.request_fields import FIELDS
from t2i_cli.terminal.console import console, escape_controls, format_bytes

if TYPE_CHECKING:
    from t2i_cli.hub.cache import CachedRepo

app = typer.Typer(
    help="The models that t2i knows, and those on this machine.",
    no_args_is_help=True,
    epilog=examples("t2i models list", "t2i models pull sdxl"),
    rich_markup_mode=None,
)

_JSON_ONLY_FIELDS = {"own", "files", "refuses", "guidance_off", "words", "examples"}
"""Fields of a model's record that the text output leaves out or prints separately."""

ModelArg = Annotated[str, typer.Argument(help=FIELDS["model"].help)]


@command(app, "t2i models list", "t2i models list --json", name="list", alias="ls")
def list_(json: JsonOpt = False) -> None:
    """List the catalogue, your own models, and what else is downloaded."""
    console.configure(json=json)
    cached = _cached()
    catalog_repos = {spec.repo for spec in catalog.MODELS.values()}
    other_specs = [ModelSpec(name=repo, repo=repo) for repo in cached if repo not in catalog_repos]
    specs = [*catalog.MODELS.values(), *other_specs, *models_buckets.copied_models()]
    entries = models_own.own_models()
    if json:
        for entry in entries:
            console.result_json(models_own.own_record(entry))
        for spec in specs:
            console.result_json(_record(spec, cached))
        return
    rows = [("NAME", "SIZE", "HERE", "LICENCE", "")]
    rows += [models_own.table_row(entry) for entry in entries]
    console.table(rows + [_table_row(spec, cached) for spec in specs])


@command(app, "t2i models show sdxl", "t2i models show FILE.safetensors --json")
def show(
    model: ModelArg,
    json: JsonOpt = False,
) -> None:
    """Show all that is known of a model or a file; of postcard, all the words it knows, too."""
    console.configure(json=json)
    entry, model = models_own.meant_model(model)
    if entry and not json:
        models_own.show_entry(entry)
        console.result("")
    own = models_own.existing_record(entry)
    if weight_sources.names_file(model):
        models_files.show_file(model, entry.revision if entry else None, json=json, own=own)
        return
    spec = _find_usable(model)
    cached = _cached()
    if not own and spec.repo and spec.repo not in cached and spec.name not in catalog.MODELS:
        raise ModelError(
            f"{spec.repo} is neither in the catalogue nor downloaded.",
            hint=f"`t2i models pull {spec.repo}` downloads it.",
        )
    record = _record(spec, cached)
    if spec.name == "postcard":
        from t2i_cli.postcard import vocabulary

        record |= {"words": vocabulary.vocabulary(), "examples": vocabulary.EXAMPLES}
    if json:
        console.result_json(record | own)
        return
    for key, value in record.items():
        if value is not None and key not in _JSON_ONLY_FIELDS:
            text = (
                format_bytes(value) if key.endswith("bytes") and isinstance(value, int) else value
            )
            console.result(f"{key.replace('_', ' ')}: {_value_text(text)}")
    if spec.name == "postcard":
        console.result("")
        for title, words in vocabulary.vocabulary().items():
            console.result(f"{title}: {' '.join(words)}")
        console.result("")
        for example in vocabulary.EXAMPLES:
            console.result(f't2i generate -m postcard "{example}"')


@command(app, "t2i models path postcard", "t2i models path sd15 --revision main")
def path(model: ModelArg, revision: RevisionOpt = None, json: JsonOpt = False) -> None:
    """Print the folder where a model lies on this machine."""
    console.configure(json=json)
    entry, model = models_own.meant_model(model)
    models_own.existing_record(entry)
    revision = revision or (entry.revision if entry else None)
    if bucket_models.is_bucket_model(model):
        name, folder = entry.name if entry else model, models_buckets.downloaded_path(model)
    elif (entry or not catalog.is_file(model)) and weight_sources.names_file(model):
        name = entry.name if entry else model
        folder = models_files.path_of_file(model, revision)
    else:
        spec = _find_usable(model, revision)
        name = entry.name if entry else spec.name
        folder = spec.folder or _fetch(spec, spec.revision or revision, offline=True)
    if json:
        console.result_json({"model": name, "path": str(folder)})
    else:
        console.result(str(folder))


@command(app, "t2i models pull sdxl", "t2i models pull FILE.safetensors")
def pull(
    model: ModelArg, revision: RevisionOpt = None, json: JsonOpt = False, quiet: QuietOpt = False
) -> None:
    """Download a model, and print its folder; a broken download keeps its finished files.

    Of a single file, the configs that it is used with, and the parts that it lacks; of one on the
    Hub (owner/name/file.safetensors) the file as well.
    """
    console.configure(json=json, quiet=quiet)
    entry, model = models_own.meant_model(model)
    models_own.existing_record(entry)
    revision = revision or (entry.revision if entry else None)
    if weight_sources.names_file(model) or bucket_models.is_bucket_model(model):
        models_files.pull_file(model, revision, entry.parts if entry else {}, json=json)
        return
    spec = _find_usable(model, revision)
    if spec.folder:
        console.note(f"{spec.name} is on this machine already.")
    folder = spec.folder or _fetch(spec, spec.revision or revision, offline=False)
    if json:
        console.result_json({"model": spec.name, "path": str(folder)})
    else:
        console.result(str(folder))


command(
    app,
    "t2i models add dreamy ~/dreamy.safetensors --steps 25 --lora snow:0.8",
    "t2i models add quick-sdxl sdxl --lora lcm-sdxl",
)(models_own.add)


@command(app, "t2i models remove sdxl", "t2i models remove sd15 --yes", alias="rm")
def remove(
    model: ModelArg, yes: YesOpt = False, json: JsonOpt = False, quiet: QuietOpt = False
) -> None:
    """Remove a downloaded model from this machine, or a name of yours, whose files stay."""
    console.configure(json=json, quiet=quiet)
    if (own := models_own.remove_entry(model)) is not None:
        if json:
            console.result_json({"model": own, "own": True, "freed_bytes": 0})
        else:
            console.note(f"{own} is no name of yours any more; the files are untouched.")
        return
    if bucket_models.is_bucket_model(model):
        models_buckets.remove_copy(model, yes=yes, json=json)
        return
    if (source := parse_source(model)) and source.file:
        _remove_downloaded(source.name, source, yes=yes, json=json)
        return
    spec = _find_spec(model)
    if spec.repo is None:
        what = "part of t2i" if spec.name in catalog.MODELS else "a folder of yours"
        raise InputError(f"{spec.name} is {what}; only what was downloaded can be removed.")
    _remove_downloaded(spec.name, HubSource(spec.repo), yes=yes, json=json)


command(
    app,
    "t2i models convert model.ckpt",
    "t2i models convert embedding.pt -o embedding.safetensors",
)(models_files.convert)


def _remove_downloaded(name: str, source: HubSource, *, yes: bool, json: bool) -> None:
    """Remove a repository of the Hub, or a file of one, from the cache. Raises T2IError."""
    from t2i_cli.hub import cache

    size = cache.cached_size(source.repo, source.file, source.revision)
    if not yes:
        console.confirm(f"Remove {source.name} ({format_bytes(size)}) from {cache.cache_folder()}?")
    if source.file:
        freed = cache.remove_cached_file(source.repo, source.file, source.revision)
    else:
        freed = cache.remove_cached(source.repo)
    if json:
        console.result_json({"model": name, "repo": source.repo, "freed_bytes": freed})
    else:
        console.note(f"Removed {source.name}; {format_bytes(freed)} are free again.")


def _find_usable(name: str, revision: str | None = None) -> ModelSpec:
    """The model of that name; a folder must hold one. Raises T2IError."""
    spec = _find_spec(name, revision)
    if spec.folder:
        diffusers_folder.read_model_index(spec.folder)
    return spec


def _find_spec(name: str, revision: str | None = None) -> ModelSpec:
    """The model of that name: in the catalogue, a folder, repository or URL. Raises T2IError."""
    name, revision = catalog.parse_address(name, revision)
    if bucket_models.is_bucket_model(name):
        return models_buckets.described_spec(name, revision)
    spec = catalog.find_known(name)
    if spec is None and (folder := catalog.folder_named(name)):
        spec = ModelSpec(name=name, folder=folder.resolve())
    if spec is not None:
        catalog.check_revision(spec, revision)
        return spec
    if catalog.is_repository(name):
        return ModelSpec(name=name, repo=name, revision=revision)
    raise catalog.unknown_model(name)


def _fetch(spec: ModelSpec, revision: str | None, *, offline: bool) -> Path:
    """The folder of a model of the Hub; downloads it unless offline."""
    from t2i_cli import hub
    from t2i_cli.terminal.progress import Progress

    repo = spec.repo or spec.name
    with Progress(console, 1) as progress:
        configs = hub.fetch_configs(repo, revision=revision, offline=offline)
        return hub.download_model(
            repo,
            revision=revision,
            offline=offline,
            dtype=_computed_dtype(configs),
            on_event=progress,
        )


def _computed_dtype(folder: Path) -> str:
    """The dtype that this machine computes the model of a folder in, and so chooses weights for."""
    from t2i_cli.settings import store

    dtype = store.get_setting("dtype")
    if dtype is None:
        from t2i_cli.backends.local import device

        name = store.get_setting("device")
        # Nothing is computed here, so that a GPU that is asked for may be absent.
        device_info = device.find_device(name) if name else device.list_devices()[0]
        transformer = diffusers_folder.denoiser_config(folder)[0] == "transformer"
        dtype = device.choose_dtype(device_info, None, transformer=transformer)
    return dtype


def _cached() -> "dict[str, CachedRepo]":
    """What is downloaded; without a usable cache nothing is, and a warning says why."""
    from t2i_cli.hub import cache

    try:
        return cache.cached_repos()
    except (InputError, StorageError) as error:
        console.warn(error.message)
        return {}


def _record(spec: ModelSpec, cached: "dict[str, CachedRepo]") -> dict[str, object]:
    """All known fields of a model, as `--json` prints them."""
    found = cached.get(spec.repo or "")
    folder = spec.folder or (found.folder if found else None)
    if spec.copy_folder:
        whole = bucket_models.has_all_files(bucket_models.model_of_copy(spec.copy_folder))
    elif spec.folder:
        whole = _has_all_weights(spec.folder)
    else:
        whole = bool(found and found.complete)
    state = "whole" if whole else "partly" if folder else "no"
    known = asdict(spec)
    del known["own_name"], known["defaults"], known["copy_folder"]
    return known | {
        "own": False,
        "folder": str(folder) if folder else None,
        "revision": found.commit if found else None,
        "downloaded": state,
        "files": list(found.files) if found else [],
        "disk_bytes": found.size if found else _disk_bytes(spec),
    }


def _has_all_weights(folder: Path) -> bool:
    """Whether a folder has the weights of all components; their headers are read."""
    try:
        return bool(weights.read_weight_headers(folder, "float32"))
    except ModelError:
        return False


def _table_row(spec: ModelSpec, cached: "dict[str, CachedRepo]") -> tuple[str, str, str, str, str]:
    record = _record(spec, cached)
    size = format_bytes(spec.download_bytes) if spec.download_bytes else ""
    state = {"whole": "yes", "partly": "partly", "no": "no"}[str(record["downloaded"])]
    if isinstance(taken := record["disk_bytes"], int):
        state += f", {format_bytes(taken)}"
    licence = f"{spec.licence or ''}{' (gated)' if spec.gated else ''}"
    found = cached.get(spec.repo or "")
    files = ", ".join(escape_controls(name) for name in found.files) if found else ""
    return spec.name, size, state, licence, spec.summary or files


def _disk_bytes(spec: ModelSpec) -> int | None:
    if spec.copy_folder:
        return models_buckets.copy_bytes(spec.copy_folder)
    if spec.folder is None:
        return None
    walked = os.walk(spec.folder)
    files = (os.path.join(parent, name) for parent, _, names in walked for name in names)
    return sum(os.path.getsize(file) for file in files if os.path.isfile(file))


def _value_text(value: object) -> str:
    return (
        {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    )
