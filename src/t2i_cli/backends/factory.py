"""Which backend makes the images: `choose()`, from a command's options and the settings."""

from typing import TYPE_CHECKING, TypedDict, Unpack

from t2i_cli import durations
from t2i_cli.backend import Backend
from t2i_cli.console import console
from t2i_cli.errors import InputError
from t2i_cli.net.defaults import RETRIES, TIMEOUT
from t2i_cli.output.filenames import ImageFormat
from t2i_cli.settings import store

if TYPE_CHECKING:
    from t2i_cli.backends.local import LocalOptions


class BackendOptions(TypedDict, total=False):
    """What the command line says of how images are made; None and False are not given.

    `format` is that of the files, for what has to choose one for the way here.
    """

    device: str | None
    dtype: str | None
    memory: str | None
    attention_slicing: bool | None
    clear_cache: bool
    keep_alive: str | None
    trust_remote_code: bool
    no_safety_checker: bool
    offline: bool
    batch_size: int | None
    strict: bool
    url: str | None
    dialect: str | None
    endpoint: str | None
    project: str | None
    region: str | None
    api_endpoint: str | None
    serving: str | None
    retries: int | None
    timeout: float | None
    concurrency: int | None
    format: ImageFormat


_REMOTE = frozenset({"retries", "timeout", "concurrency", "format"})
_TAKES = {
    "http": _REMOTE | {"url", "dialect"},
    "vertex": _REMOTE | {"endpoint", "project", "region", "api_endpoint", "serving"},
}
_TAKES["local"] = frozenset(BackendOptions.__annotations__) - (_TAKES["http"] | _TAKES["vertex"])


def create_backend(
    backend: str | None = None,
    *,
    lenient: bool | None = False,
    worker: bool = False,
    **options: Unpack[BackendOptions],
) -> Backend:
    """The backend of that name, else of the settings, else this machine. Raises InputError.

    `lenient` is `None` where the command has no such option. With `worker`, this machine's images
    may come from the warm worker, as `keep_alive` says.
    """
    name = store.resolve_setting("backend", backend) or "local"
    _check(name, options, lenient)
    match name:
        case "http":
            return _http(options)
        case "vertex":
            return _vertex(options)
    return _local(options, lenient, worker)


def default_model(backend: str | None) -> str | None:
    """The model of the settings, which is this machine's: a server has its own."""
    local = (store.resolve_setting("backend", backend) or "local") == "local"
    return store.get_setting("model") if local else None


def _check(backend: str, options: BackendOptions, lenient: bool | None) -> None:
    """Raise InputError, or warn, for every option that the backend cannot honour."""
    for name, value in options.items():
        given = value is not None and (value is not False or name == "attention_slicing")
        # One image a call is what every server makes.
        usual = name == "format" or (name == "batch_size" and value == 1)
        if not given or usual or name in _TAKES[backend]:
            continue
        flag = f"--{name.replace('_', '-')}"
        theirs = " or ".join(other for other, taken in _TAKES.items() if name in taken)
        if not lenient:
            without = "" if lenient is None else "; --lenient goes on without it"
            raise InputError(
                f"{flag} means nothing to the {backend} backend.",
                hint=f"It is for --backend {theirs}{without}.",
                field=name,
            )
        console.warn(f"{flag} means nothing to the {backend} backend. It is left out.")


def _local(options: BackendOptions, lenient: bool | None, worker: bool) -> Backend:
    from t2i_cli.backends.local import LocalOptions

    made = LocalOptions(
        device=options.get("device") or store.get_setting("device"),
        dtype=options.get("dtype") or store.get_setting("dtype"),
        memory=store.resolve_setting("memory", options.get("memory")) or "auto",
        attention_slicing=options.get("attention_slicing"),
        clear_cache=options.get("clear_cache", False),
        trust_remote_code=options.get("trust_remote_code", False),
        safety_checker=not options.get("no_safety_checker", False),
        offline=options.get("offline", False),
        lenient=lenient,
        batch_size=options.get("batch_size", 1),
    )
    keep_alive = durations.parse_duration(
        store.resolve_setting("keep_alive", options.get("keep_alive")) or "0s"
    )
    if worker and keep_alive:
        from t2i_cli.worker.backend import WorkerBackend

        return WorkerBackend(made, keep_alive, create_local_backend, options.get("format", "png"))
    return create_local_backend(made)


def create_local_backend(options: "LocalOptions") -> Backend:
    """This machine's images, made in this process."""
    from t2i_cli.backends.local import LocalBackend
    from t2i_cli.worker.spawn import evict_idle_worker

    return LocalBackend(options, evict_idle_worker)


def _http(options: BackendOptions) -> Backend:
    from t2i_cli.backends.http import HttpBackend, HttpOptions
    from t2i_cli.backends.http import options as http

    url = http.parse_base_url(options.get("url") or store.get_setting("http_url"))
    key = http.api_key_for(url)
    if key and http.is_plaintext(url):
        console.warn(f"The API key goes to {url} unencrypted; https:// would hide it.")
    return HttpBackend(
        HttpOptions(
            url=url,
            key=key,
            dialect=store.resolve_setting("http_dialect", options.get("dialect")),
            retries=_retries(options),
            timeout=_timeout(options),
            concurrency=_concurrency(options),
        )
    )


def _vertex(options: BackendOptions) -> Backend:
    from t2i_cli.backends.vertex import VertexBackend, VertexOptions

    return VertexBackend(
        VertexOptions(
            endpoint=store.resolve_setting("vertex_endpoint", options.get("endpoint")),
            project=options.get("project"),
            region=options.get("region"),
            api_endpoint=options.get("api_endpoint"),
            serving=options.get("serving"),
            format=options.get("format", "png"),
            retries=_retries(options),
            timeout=_timeout(options),
            concurrency=_concurrency(options),
        )
    )


def _retries(options: BackendOptions) -> int:
    retries = options.get("retries")
    return int(store.get_setting("retries") or RETRIES) if retries is None else retries


def _timeout(options: BackendOptions) -> float:
    return options.get("timeout") or float(store.get_setting("timeout") or TIMEOUT)


def _concurrency(options: BackendOptions) -> int | None:
    found = options.get("concurrency") or store.get_setting("concurrency")
    return int(found) if found else None
