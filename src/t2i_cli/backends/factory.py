"""Which backend makes the images: `create_backend()`, from a command's options and the settings."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from t2i_cli import durations
from t2i_cli.backend import Backend
from t2i_cli.errors import InputError
from t2i_cli.image_formats import ImageFormat
from t2i_cli.net.retry import RetryPolicy
from t2i_cli.settings import defaults, store
from t2i_cli.settings.options import (
    BackendOptions,
    CallOptions,
    DeviceOptions,
    EndpointOptions,
    HttpServerOptions,
)
from t2i_cli.terminal.console import console

if TYPE_CHECKING:
    from t2i_cli.backends.local import LocalOptions

_BACKENDS_OF = {
    HttpServerOptions: ("http",),
    EndpointOptions: ("vertex",),
    CallOptions: ("http", "vertex"),
    DeviceOptions: ("local",),
}
"""Which backends each group of options is for."""


def create_backend(
    options: BackendOptions | None = None,
    *,
    keep_alive: str | None = None,
    batch_size: int | None = 1,
    strict: bool = False,
    format: ImageFormat = "png",
    lenient: bool | None = False,
    worker: bool = False,
) -> Backend:
    """The backend that is named, else that of the settings, else this machine. Raises InputError.

    `batch_size` are the images of one pass, `None` as many as the device gains by; `format` is that
    of the files, for what has to choose one for the way here. `lenient` is `None` where the
    command has no such option. With `worker`, this machine's images may come from the warm worker,
    as `keep_alive` says.
    """
    options = options or BackendOptions()
    name = store.resolve_setting("backend", options.backend) or "local"
    # One image a call is what every server makes.
    size = None if batch_size == 1 else batch_size
    own = {"keep_alive": keep_alive, "batch_size": size, "strict": strict or None}
    _check(name, options, own, lenient)
    match name:
        case "http":
            return _http(options)
        case "vertex":
            return _vertex(options, format)
    made = _local_options(options.device, lenient, batch_size)
    seconds = durations.parse_duration(store.resolve_setting("keep_alive", keep_alive) or "0s")
    if worker and seconds:
        from t2i_cli.worker.backend import WorkerBackend

        return WorkerBackend(made, seconds, create_local_backend, format)
    return create_local_backend(made)


def default_model(backend: str | None) -> str | None:
    """The model of the settings, which is this machine's: a server has its own."""
    local = (store.resolve_setting("backend", backend) or "local") == "local"
    return store.get_setting("model") if local else None


def _check(
    backend: str, options: BackendOptions, local: Mapping[str, object], lenient: bool | None
) -> None:
    """Raise InputError, or warn, for every option that the backend cannot honour."""
    given: list[tuple[str, tuple[str, ...]]] = []
    for group in (options.http, options.endpoint, options.calls, options.device):
        changed = [one.name for one in fields(group) if getattr(group, one.name) != one.default]
        given += [(name, _BACKENDS_OF[type(group)]) for name in changed]
    given += [(name, ("local",)) for name, value in local.items() if value is not None]
    for name, takers in given:
        if backend in takers:
            continue
        flag = f"--{name.replace('_', '-')}"
        if not lenient:
            without = "" if lenient is None else "; --lenient goes on without it"
            raise InputError(
                f"{flag} means nothing to the {backend} backend.",
                hint=f"It is for --backend {' or '.join(takers)}{without}.",
                field=name,
            )
        console.warn(f"{flag} means nothing to the {backend} backend. It is left out.")


def _local_options(
    chosen: DeviceOptions, lenient: bool | None, batch_size: int | None
) -> "LocalOptions":
    from t2i_cli.backends.local import LocalOptions

    return LocalOptions(
        device=chosen.device or store.get_setting("device"),
        dtype=chosen.dtype or store.get_setting("dtype"),
        memory=store.resolve_setting("memory", chosen.memory) or "auto",
        attention_slicing=chosen.attention_slicing,
        clear_cache=chosen.clear_cache,
        trust_remote_code=chosen.trust_remote_code,
        safety_checker=not chosen.no_safety_checker,
        offline=chosen.offline,
        lenient=lenient,
        batch_size=batch_size,
    )


def create_local_backend(options: "LocalOptions") -> Backend:
    """This machine's images, made in this process."""
    from t2i_cli.backends.local import LocalBackend
    from t2i_cli.worker.spawn import evict_idle_worker

    return LocalBackend(options, evict_idle_worker)


def _http(options: BackendOptions) -> Backend:
    from t2i_cli.backends.http import HttpBackend, HttpOptions
    from t2i_cli.backends.http import options as http

    url = http.parse_base_url(options.http.url or store.get_setting("http_url"))
    key = http.api_key_for(url)
    if key and http.is_plaintext(url):
        console.warn(f"The API key goes to {url} unencrypted; https:// would hide it.")
    return HttpBackend(
        HttpOptions(
            url=url,
            key=key,
            dialect=store.resolve_setting("http_dialect", options.http.dialect),
            retry_policy=_retry_policy(options.calls),
            concurrency=_concurrency(options.calls),
        )
    )


def _vertex(options: BackendOptions, format: ImageFormat) -> Backend:
    from t2i_cli.backends.vertex import VertexBackend, VertexOptions

    named = store.resolve_setting("vertex_endpoint", options.endpoint.endpoint)
    return VertexBackend(
        VertexOptions(
            place=replace(options.endpoint, endpoint=named),
            format=format,
            retry_policy=_retry_policy(options.calls),
            concurrency=_concurrency(options.calls),
        )
    )


def _retry_policy(calls: CallOptions) -> RetryPolicy:
    retries = calls.retries
    if retries is None:
        retries = int(store.get_setting("retries") or defaults.RETRIES)
    timeout = calls.timeout or float(store.get_setting("timeout") or defaults.TIMEOUT)
    return RetryPolicy(retries=retries, timeout=timeout, from_options=True)


def _concurrency(calls: CallOptions) -> int | None:
    found = calls.concurrency or store.get_setting("concurrency")
    return int(found) if found else None
