"""The checks of `t2i doctor`: each reports what is installed or reachable, and how to fix it.

A finding is a problem only if it prevents every image; all others are notes.
"""

import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from queue import Empty, SimpleQueue
from typing import Literal

from t2i_cli import __version__, library_environment, postcard
from t2i_cli.errors import AccessError, InputError, ModelError, T2IError
from t2i_cli.files.user_folders import NoHomeError
from t2i_cli.models import bucket_models, catalog, hub_sources, own_models
from t2i_cli.output import filenames
from t2i_cli.settings import store
from t2i_cli.terminal.console import format_bytes

NETWORK_TIMEOUT = 8.0
"""Seconds for all network checks, which run concurrently."""
MIN_FREE_BYTES = 10 * 10**9
"""Free bytes below which the disk is reported; most models need more."""

_LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "huggingface-hub",
    "pillow",
    "google-cloud-aiplatform",
)
DiagnosticStatus = Literal["ok", "note", "problem"]


@dataclass(frozen=True, kw_only=True)
class Diagnostic:
    """One finding; `exit_code` is not 0 if it prevents every image."""

    name: str
    status: DiagnosticStatus
    detail: str
    fix: str | None = None
    exit_code: int = 0

    def to_json(self) -> dict[str, object]:
        """The finding as `--json` prints it."""
        return asdict(self)


def run_diagnostics() -> Iterator[Diagnostic]:
    """Yield all findings; waits at most NETWORK_TIMEOUT seconds for the network."""
    remote = {"hub": _hub, "google": _google}
    results: dict[str, SimpleQueue[Diagnostic]] = {name: SimpleQueue() for name in remote}
    for name, check in remote.items():
        # Daemon threads: a DNS lookup cannot be cancelled, and must not delay the exit.
        threading.Thread(target=_put_result, args=(results[name], name, check), daemon=True).start()
    yield Diagnostic(
        name="t2i", status="ok", detail=f"{__version__}, Python {platform.python_version()}"
    )
    yield _libraries()
    yield _run_check("config", _config)
    yield from _environment()
    yield from _packages()
    yield from _devices()
    yield _postcard()
    yield _run_check("model", _model, status="note")
    yield _run_check("disk", _disk, status="note")
    yield from _compiled()
    end = time.monotonic() + NETWORK_TIMEOUT
    for name, result in results.items():
        try:
            yield result.get(timeout=max(0.0, end - time.monotonic()))
        except Empty:
            yield Diagnostic(name=name, status="note", detail="no answer in time")


def _put_result(
    result: SimpleQueue[Diagnostic], name: str, check: Callable[[], Diagnostic]
) -> None:
    result.put(_run_check(name, check, status="note"))


def _run_check(
    name: str, check: Callable[[], Diagnostic], status: DiagnosticStatus = "problem"
) -> Diagnostic:
    """Run a check; a T2IError becomes a finding."""
    try:
        return check()
    except T2IError as error:
        code = error.exit_code if status == "problem" else 0
        return Diagnostic(
            name=name, status=status, detail=error.message, fix=error.hint, exit_code=code
        )


def _libraries() -> Diagnostic:
    found, missing = [], []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Diagnostic(
            name="libraries",
            status="problem",
            detail=f"{', '.join(missing)} not installed",
            fix="Install t2i again: python -m pip install --force-reinstall t2i-cli",
            exit_code=ModelError.exit_code,
        )
    return Diagnostic(name="libraries", status="ok", detail=", ".join(found))


def _config() -> Diagnostic:
    set_here = [key for key in store.SETTINGS if store.find_setting(key)]
    named = ", ".join(set_here) or "nothing set"
    try:
        file = store.settings_path()
    except NoHomeError as error:
        return Diagnostic(
            name="config", status="note", detail=f"{named}; {error.message}", fix=error.hint
        )
    where = str(file) if os.path.exists(file) else f"{file} (not there)"
    return Diagnostic(name="config", status="ok", detail=f"{named}; {where}")


def _environment() -> Iterator[Diagnostic]:
    faults = library_environment.environment_faults()
    for fault in faults:
        yield Diagnostic(name="environment", status="note", detail=fault.message, fix=fault.hint)
    if not faults:
        yield Diagnostic(
            name="environment", status="ok", detail="the libraries' variables can be used"
        )


def _packages() -> Iterator[Diagnostic]:
    from t2i_cli.models import required_packages

    if reason := required_packages.torchvision_mismatch():
        hint = required_packages.install_hint("torchvision")
        yield Diagnostic(
            name="torchvision",
            status="problem",
            detail=f"{reason}: models cannot be loaded with it",
            fix=f"{hint} `pip uninstall torchvision` does as well: few models need it.",
            exit_code=ModelError.exit_code,
        )


def _devices() -> Iterator[Diagnostic]:
    from t2i_cli.models import libraries

    try:
        libraries.import_torch()
    except InputError as error:
        yield Diagnostic(
            name="device",
            status="problem",
            detail=error.message,
            fix=error.hint,
            exit_code=error.exit_code,
        )
        return
    # A broken torch raises these too: a missing library, a build for another processor.
    except (ImportError, OSError, RuntimeError) as error:
        yield Diagnostic(
            name="device",
            status="problem",
            detail=f"torch does not load: {error}",
            fix="Install torch for this machine: https://pytorch.org/get-started/locally/",
            exit_code=ModelError.exit_code,
        )
        return
    from t2i_cli.backends.local import cpu_features
    from t2i_cli.backends.local import device as local

    found = local.list_devices()
    if found[0].kind == "cpu":
        yield from _unused_gpu()
    for device in found:
        memory = local.device_memory(device)
        yield Diagnostic(
            name="device",
            status="ok",
            detail=f"{device.name} ({device.label}), {format_bytes(memory.free)} of "
            f"{format_bytes(memory.total)} free",
        )
    if found[0].kind == "cpu" and (instructions := cpu_features.bfloat16_instructions()):
        yield Diagnostic(
            name="dtype",
            status="ok",
            detail=f"this processor has {instructions}: --dtype bfloat16 is faster than float32, "
            "and may change a picture",
        )


def _unused_gpu() -> Iterator[Diagnostic]:
    """What a run would say of the GPU that it does not use, or without which it does not start."""
    from t2i_cli.backends.local import absent_gpu

    if absence := absent_gpu.find_unused_gpu():
        yield Diagnostic(
            name="device", status="note", detail=absence.sentence.rstrip("."), fix=absence.fix
        )
    with suppress(InputError):  # `_config` reports it
        if store.find_setting("device"):
            return
    try:
        absent_gpu.require_requested_gpu()
    except InputError as error:
        yield Diagnostic(
            name="device",
            status="problem",
            detail=error.message,
            fix=error.hint,
            exit_code=error.exit_code,
        )


def _postcard() -> Diagnostic:
    weights = list(postcard.FOLDER.glob("*/*.safetensors"))
    if len(weights) < 3 or not (postcard.FOLDER / "model_index.json").exists():
        return Diagnostic(
            name="postcard",
            status="problem",
            detail=f"the embedded model is not whole in {postcard.FOLDER}",
            fix="Install t2i again: python -m pip install --force-reinstall t2i-cli",
            exit_code=ModelError.exit_code,
        )
    return Diagnostic(name="postcard", status="ok", detail="the embedded model is there")


def _disk() -> Diagnostic:
    from t2i_cli.hub import cache, client

    client.require_cache_folder()
    folder = cache.cache_folder()
    free = shutil.disk_usage(filenames.existing_parent(folder)).free
    detail = f"{format_bytes(free)} free for models in {folder}"
    if free < MIN_FREE_BYTES:
        return Diagnostic(
            name="disk", status="note", detail=detail, fix="Make room, or set HF_HOME elsewhere."
        )
    return Diagnostic(name="disk", status="ok", detail=detail)


def _compiled() -> Iterator[Diagnostic]:
    """What is kept of compiled models and measured engines, if anything is."""
    from t2i_cli.backends.local import compilation, engine_measurements

    try:
        folder, file = compilation.compiled_code_folder(), engine_measurements.measurements_path()
    except NoHomeError:
        return
    files = [path for path in (file, *folder.rglob("*")) if path.is_file()]
    if files:
        size = sum(path.stat().st_size for path in files)
        yield Diagnostic(
            name="compiled",
            status="ok",
            detail=f"{format_bytes(size)} of compiled code in {folder} and of measured times in "
            f"{file}; to have both made anew, delete them",
        )


def _model() -> Diagnostic:
    from t2i_cli.hub import cache, repository_file

    name = store.get_setting("model") or catalog.DEFAULT_MODEL
    if own := own_models.find_own_model(name):
        own_models.check_own_source(own)
        name = own.model
    if bucket_models.is_bucket_model(name):
        return _bucket_model(name)
    spec = catalog.find_known(name)
    here = catalog.folder_named(name) or catalog.file_named(name)
    named = hub_sources.parse_source(name)
    if spec is None and not (here or named):
        raise catalog.unknown_model(name)
    repo = spec.repo if spec else named and named.repo
    if named and named.file:
        found = repository_file.is_downloaded(named.repo, named.file, named.revision)
    else:
        cached = cache.cached_repos().get(repo or "")
        found = bool(cached and cached.complete)
    if (spec and spec.folder) or (here and here.exists()) or found:
        return Diagnostic(
            name="model", status="ok", detail=f"{name}, the default, is on this machine"
        )
    size = f" ({format_bytes(spec.download_bytes)})" if spec and spec.download_bytes else ""
    return Diagnostic(
        name="model",
        status="note",
        detail=f"{name}, the default, is not downloaded{size}",
        fix=f"`t2i models pull {name}`, or use -m postcard, which needs no download.",
    )


def _bucket_model(name: str) -> Diagnostic:
    """Whether the default model, which is in a bucket, was fetched."""
    if bucket_models.has_local_copy(name):
        return Diagnostic(
            name="model", status="ok", detail=f"{name}, the default, has a copy on this machine"
        )
    return Diagnostic(
        name="model",
        status="note",
        detail=f"{name}, the default, is not downloaded",
        fix=f"`t2i models pull {name}`, or use -m postcard, which needs no download.",
    )


def _hub() -> Diagnostic:
    from t2i_cli.hub import account

    owner = account.token_owner()
    if owner is None:
        account.check_reachable()
        return Diagnostic(
            name="hub",
            status="ok",
            detail="the Hub answers; nobody is logged in (only gated models need it)",
        )
    return Diagnostic(
        name="hub",
        status="ok",
        detail=f"the Hub answers; {owner.user} is logged in by {owner.source}",
    )


def _google() -> Diagnostic:
    from t2i_cli.vertex import permissions

    try:
        login, capabilities = permissions.check_capabilities(seconds=NETWORK_TIMEOUT / 3)
    except AccessError as error:
        return Diagnostic(
            name="google",
            status="note",
            detail=f"{error.message} Only Vertex AI needs them.",
            fix=error.hint,
        )
    return Diagnostic(
        name="google",
        status="ok",
        detail=f"{login.account or 'somebody'}, project {login.project or 'not set'}, "
        f"by {login.source}" + (f"; may: {capabilities.text()}" if capabilities else ""),
        fix="docs/remote.md names a role for each step."
        if capabilities and capabilities.missing
        else None,
    )
