"""Finds, checks and downloads the adapters of a request before a weight of its model is loaded."""

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from t2i_cli.backends.local.adapters import ReadAdapter, named_by_source
from t2i_cli.backends.local.load_target import LoadTarget
from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.errors import ModelError
from t2i_cli.events import OnEvent
from t2i_cli.models import (
    adapter_file,
    adapter_fit,
    adapter_sources,
    class_facts,
    diffusers_folder,
    saved_quantization,
    sources,
)
from t2i_cli.models.adapter_file import AdapterFile
from t2i_cli.models.weights import DTYPE_BYTES
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_adapters import Adapter, AdapterKind


def check_adapters(request: ResolvedRequest, target: LoadTarget, options: LocalOptions) -> None:
    """Raise T2IError for an adapter that the model cannot have; reads headers only.

    One that is still to be downloaded is checked when it is here.
    """
    if request.loras:
        _check_possible(target)
    for adapter in _adapters(request):
        if path := _path(adapter, options):
            with named_by_source(adapter, path):
                _checked(adapter.kind, path, _changed(path), target.folder, target.spec.name)


def fetch_adapters(
    request: ResolvedRequest, target: LoadTarget, options: LocalOptions, on_event: OnEvent
) -> list[ReadAdapter]:
    """The request's adapters, downloaded and checked. Raises T2IError."""
    found = []
    for adapter in _adapters(request):
        path = adapter_sources.fetch_adapter(
            adapter, options.lora_dir, offline=options.offline, on_event=on_event
        )
        [settled] = adapter_sources.settle_adapters(
            (adapter,), options.lora_dir, offline=options.offline
        )
        with named_by_source(adapter, path):
            file = _checked(adapter.kind, path, _changed(path), target.folder, target.spec.name)
        found.append(ReadAdapter(settled, file))
    return found


def check_disk_for_adapters(target: LoadTarget, planned: LoadTarget) -> None:
    """Raise StorageError if a model and the adapters of `planned` need more disk than is free."""
    # What is fetched from a bucket goes elsewhere, perhaps to another disk.
    if planned.missing_bytes > target.missing_bytes and not target.spec.copy_folder:
        from t2i_cli.hub import download

        download.check_free_disk(
            f"{target.spec.name} with its LoRAs and embeddings", planned.missing_bytes
        )


def with_adapters(
    target: LoadTarget, request: ResolvedRequest, options: LocalOptions
) -> LoadTarget:
    """The target with the bytes of the request's adapters, on the device and to download."""
    elements = missing = 0
    for adapter in _adapters(request):
        found = adapter_sources.find_adapter(adapter, options.lora_dir, offline=options.offline)
        missing += found.download_bytes
        if found.path:
            with named_by_source(adapter, found.path):
                elements += _read(adapter.kind, found.path, _changed(found.path)).elements
        else:
            elements += found.download_bytes // 2
    if not elements:
        return target
    name = "model" if target.missing_bytes else diffusers_folder.denoiser_config(target.folder)[0]
    more = elements * DTYPE_BYTES[target.dtype]
    sizes = {**target.sizes, name: target.sizes.get(name, 0) + more}
    return replace(target, sizes=sizes, missing_bytes=target.missing_bytes + missing)


def _adapters(request: ResolvedRequest) -> Iterator[Adapter]:
    yield from request.loras or ()
    yield from request.embeddings or ()


def _check_possible(target: LoadTarget) -> None:
    """Raise ModelError if no LoRA can be loaded here, or into weights that were saved so."""
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            "LoRAs need the package peft, which is not installed.", hint="pip install peft"
        )
    for part, saved in saved_quantization.quantized_parts(target.folder).items():
        reason = None
        if saved.method == "torchao" and str(saved.form).startswith("Int4"):
            reason = "peft puts no LoRA on torchao's weights of 4 bits"
        # diffusers compares FLUX's LoRAs with plain weights, which quanto's layers lack.
        elif saved.method == "quanto" and class_facts.has_method(
            sources.used_class_path(target.folder)[-1], "_maybe_expand_lora_state_dict"
        ):
            reason = "diffusers puts no LoRA of FLUX's kind on quanto's weights"
        if reason:
            raise ModelError(
                f"The {part} of {target.spec.name} is saved quantised ({saved.text}), and "
                f"{reason}.",
                hint="Use a copy of the model that is quantised otherwise, or not.",
            )


def _path(adapter: Adapter, options: LocalOptions) -> Path | None:
    found = adapter_sources.find_adapter(adapter, options.lora_dir, offline=options.offline)
    return found.path


def _changed(path: Path) -> tuple[int, int]:
    """What tells one content of a file from the next."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _read(kind: AdapterKind, path: Path, changed: tuple[int, int]) -> AdapterFile:
    return adapter_file.read_adapter_file(path, kind)


@lru_cache(maxsize=64)
def _checked(
    kind: AdapterKind, path: Path, changed: tuple[int, int], folder: Path, model: str
) -> AdapterFile:
    """What a file holds, if it fits the model. Raises ModelError."""
    found = _read(kind, path, changed)
    if kind == "lora":
        adapter_fit.check_lora_fit(found, folder, model)
    else:
        adapter_fit.check_embedding_fit(found, folder, model)
    return found
