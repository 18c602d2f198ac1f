"""What the source of a LoRA or an embedding means: a file, a name in a folder, or the Hub's.

A source is looked up in this order: a name in the folder of adapters, a file by its path, an entry
of the catalogue, `owner/name` or `owner/name/file.safetensors` on the Hub.
"""

import errno
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from t2i_cli.buckets.bucket_url import check_no_url
from t2i_cli.errors import InputError, ModelError, os_reason
from t2i_cli.events import OnEvent
from t2i_cli.files.user_paths import expand_home
from t2i_cli.files.weight_files import PICKLES
from t2i_cli.known_names import name_choices
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import adapter_catalog, file_digests, hub_sources
from t2i_cli.models.hub_sources import HubSource
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_adapters import Adapter, AdapterKind, Adapters

_ENDING = ".safetensors"
_MAX_FILES = 10_000
_MAX_SHOWN = 60


@dataclass(frozen=True)
class FoundAdapter:
    """A file of an adapter: where it lies, or `None` where it is to be downloaded.

    `download_bytes` is what that takes; `licence` is what its repository says.
    """

    path: Path | None
    digest: str | None
    download_bytes: int = 0


def with_adapter_place(spec: ModelSpec, folder: str | None, *, offline: bool) -> ModelSpec:
    """The spec of a model that is loaded here: its LoRAs are files, or names in the folder.

    Raises InputError if there is no such folder, also where no LoRA is asked for yet.
    """
    if folder:
        _check_folder(folder)
    return replace(spec, adapters="files", adapter_folder=folder, adapters_offline=offline)


def settle_adapters(
    adapters: Adapters,
    folder: str | None,
    *,
    offline: bool,
    named_only: bool = False,
    served: bool = False,
) -> Adapters:
    """The adapters with the digests of their files; those that are known are compared.

    With `named_only`, they are names of files in the folder, and nothing else, as clients of a
    server write them. Raises T2IError for one that there is not.
    """
    found = []
    for each in adapters:
        if named_only:
            check_name(each, folder, served=served)
        digest = find_adapter(each, folder, offline=offline).digest
        if each.digest and digest and each.digest != digest:
            raise InputError(
                f"{each.source} is another file than the one that was used: its SHA-256 is "
                f"{digest[:12]}…, not {each.digest[:12]}….",
                field=_field(each.kind),
            )
        found.append(replace(each, digest=digest or each.digest))
    return tuple(found)


def with_whole_paths(request: ResolvedRequest) -> ResolvedRequest:
    """The request for a process with another working folder: its files by their whole paths."""

    def whole(adapters: Adapters | None) -> Adapters | None:
        return adapters and tuple(
            replace(each, source=os.path.abspath(path)) if os.path.exists(path) else each
            for each in adapters
            for path in [expand_home(each.source)]
        )

    if not (request.loras or request.embeddings):
        return request
    return replace(request, loras=whole(request.loras), embeddings=whole(request.embeddings))


def without_paths(request: ResolvedRequest) -> ResolvedRequest:
    """The request as clients of a server see it: files of the server by their names."""

    def named(adapters: Adapters | None) -> Adapters | None:
        return adapters and tuple(
            replace(each, source=each.name) if os.path.isabs(each.source) else each
            for each in adapters
        )

    if not (request.loras or request.embeddings):
        return request
    return replace(request, loras=named(request.loras), embeddings=named(request.embeddings))


def find_adapter(adapter: Adapter, folder: str | None, *, offline: bool) -> FoundAdapter:
    """Where an adapter's file is, and its digest. Raises T2IError if there is none."""
    if path := local_file(adapter, folder):
        return FoundAdapter(path, file_digests.sha256_of(path))
    hub_adapter = _on_the_hub(adapter)
    if hub_adapter is None:
        raise _unknown(adapter, folder)
    from t2i_cli.hub import adapter_files

    path, digest, missing = adapter_files.find_adapter_file(
        hub_adapter.repo, hub_adapter.file, revision=hub_adapter.revision, offline=offline
    )
    if digest is None and path is not None:
        digest = file_digests.sha256_of(path)
    return FoundAdapter(path, digest, missing)


def download_bytes(request: ResolvedRequest, folder: str | None, *, offline: bool) -> int:
    """Bytes of the request's LoRAs and embeddings that are still to be downloaded."""
    adapters = (*(request.loras or ()), *(request.embeddings or ()))
    return sum(find_adapter(each, folder, offline=offline).download_bytes for each in adapters)


def fetch_adapter(
    adapter: Adapter, folder: str | None, *, offline: bool, on_event: OnEvent
) -> Path:
    """The file of an adapter, downloaded if it is not here. Raises T2IError."""
    if path := local_file(adapter, folder):
        return path
    hub_adapter = _on_the_hub(adapter)
    if hub_adapter is None:
        raise _unknown(adapter, folder)
    from t2i_cli.hub import adapter_files

    return adapter_files.fetch_adapter_file(
        hub_adapter.repo,
        hub_adapter.file,
        revision=hub_adapter.revision,
        offline=offline,
        on_event=on_event,
    )


def local_file(adapter: Adapter, folder: str | None) -> Path | None:
    """The file of an adapter on this machine, `None` if the source names none. Raises T2IError."""
    source = adapter.source
    if file := files_in_folder(folder).get(source.removesuffix(_ENDING)):
        return file
    path = Path(expand_home(source))
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path
        if stat.S_ISDIR(mode):
            return _only_file(path, adapter)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None and not _is_name_error(error):
            raise ModelError(f"Cannot read {source}: {os_reason(error)}.") from error
        return None
    raise ModelError(f"Cannot read {source}: it is no regular file.")


def files_in_folder(folder: str | None) -> dict[str, Path]:
    """The safetensors files in a folder and below it, by their names without the ending.

    A file in a subfolder has its name alone, and with the subfolder where two have one name.
    """
    if not folder:
        return {}
    root = _check_folder(folder)
    found: dict[str, Path] = {}
    count = 0
    for directory, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            count += 1
            if count > _MAX_FILES:
                raise InputError(f"{folder} has more than {_MAX_FILES:,} files.", field="lora_dir")
            if name.endswith(_ENDING) and not name.startswith("."):
                path = Path(directory, name)
                key = name.removesuffix(_ENDING)
                if key in found:
                    key = path.relative_to(root).as_posix().removesuffix(_ENDING)
                found[key] = path
    return found


def _check_folder(folder: str) -> Path:
    root = Path(folder)
    if not root.is_dir():
        raise InputError(
            f"There is no folder {folder}.",
            hint="--lora-dir, or the setting lora_dir, names the folder of LoRAs.",
            field="lora_dir",
        )
    return root


def check_name(adapter: Adapter, folder: str | None, *, served: bool) -> None:
    """Raise InputError if the source is no name of a file in the folder, a server's if `served`."""
    names = files_in_folder(folder)
    if adapter.source.removesuffix(_ENDING) in names:
        return
    what = "LoRA" if adapter.kind == "lora" else "embedding"
    if not folder:
        raise InputError(
            f"This server has no {what}s: it was started without --lora-dir.",
            field=_field(adapter.kind),
        )
    unknown = f"{what} {adapter.name!r}"
    raise InputError(
        f"This server has no {what} {adapter.source[:_MAX_SHOWN]!r}; "
        f"{name_choices(adapter.name, names)}"
        if served
        else f"There is no {unknown} in {folder}; {name_choices(adapter.name, names)}",
        field=_field(adapter.kind),
    )


def _only_file(path: Path, adapter: Adapter) -> Path:
    """The one file of weights in a folder, as PEFT and diffusers save them. Raises ModelError."""
    files = sorted(path.glob(f"*{_ENDING}"))
    for name in ("pytorch_lora_weights", "adapter_model", "learned_embeds"):
        if (file := path / f"{name}{_ENDING}") in files:
            return file
    if len(files) == 1:
        return files[0]
    if not files:
        raise ModelError(f"The folder {adapter.source} has no safetensors file.")
    names = ", ".join(file.name for file in files[:3])
    raise ModelError(
        f"The folder {adapter.source} has {len(files)} safetensors files ({names}).",
        hint="Name one of them.",
    )


def _on_the_hub(adapter: Adapter) -> HubSource | None:
    """The repository, or the file in it, that the source names, `None` if it names none."""
    if adapter.kind == "lora" and (entry := adapter_catalog.find_entry(adapter.source)):
        return HubSource(entry.repo, None, entry.file)
    found = hub_sources.parse_source(adapter.source)
    if found is None or (found.file and not found.file.endswith(_ENDING)):
        return None
    return found


def _unknown(adapter: Adapter, folder: str | None) -> InputError | ModelError:
    what = "LoRA" if adapter.kind == "lora" else "embedding"
    source = adapter.source
    if source.endswith(PICKLES) and os.path.exists(expand_home(source)):
        return ModelError(
            f"{source} is a pickle, which can run code when it is loaded.",
            hint=f"Look for the {what} as safetensors, or convert it: `t2i models convert FILE`.",
        )
    check_no_url(what, source, _field(adapter.kind))
    names = files_in_folder(folder)
    if "/" in source or source.endswith(_ENDING) or not (names or adapter.kind == "lora"):
        return InputError(f"There is no file {source}.", field=_field(adapter.kind))
    known = [*names, *(adapter_catalog.ENTRIES if adapter.kind == "lora" else ())]
    return InputError(
        f"There is no {what} {source!r}; {name_choices(source, known)}",
        hint="A file, owner/name on the Hub, or a name in --lora-dir does as well.",
        field=_field(adapter.kind),
    )


def _is_name_error(error: OSError) -> bool:
    return error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL}


def _field(kind: AdapterKind) -> str:
    return "loras" if kind == "lora" else "embeddings"
