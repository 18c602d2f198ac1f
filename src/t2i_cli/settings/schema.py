"""Schema of the settings: keys, environment variables, valid values."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from t2i_cli import durations, image_formats
from t2i_cli.request_fields import DEFAULT_MODEL, DIALECTS
from t2i_cli.settings import defaults

BACKENDS = ("local", "http", "vertex", "gemini", "hf", "ray")
DEVICES = ("cuda", "rocm", "xpu", "mps", "cpu")
DTYPES = ("float16", "bfloat16", "float32")
DTYPE_SPELLINGS = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32"}
MEMORY = ("auto", "fast", "low")
COMPILE = ("auto", "off", "on")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting: key in the file, environment variable, valid values in words, and a check.

    `default` says what applies where it is not set, "" for nothing. `choices` are values to choose
    from; `spellings` are other spellings of values, which are kept as those.
    """

    key: str
    variable: str
    takes: str
    accepts: Callable[[str], object]
    default: str = ""
    choices: tuple[str, ...] = ()
    spellings: Mapping[str, str] = field(default_factory=dict)
    secret: bool = False


def join_choices(names: Iterable[str]) -> str:
    """The names as a list in a sentence: `a, b or c`."""
    *most, last = list(names) or ["nothing"]
    return f"{', '.join(most)} or {last}" if most else last


def _is_text(value: str) -> bool:
    return bool(value.strip()) and value.isprintable()


def _is_worker_count(value: str) -> bool:
    return value == "auto" or (value.isascii() and value.isdecimal() and 1 <= int(value) <= 4096)


def is_safe_url(value: str) -> bool:
    """Whether a token may be sent to the URL: https, or http on a loopback address."""
    try:
        url = urlsplit(value)
        host, _ = url.hostname, url.port
    except ValueError:  # an invalid port or address
        return False
    if not host or url.username or url.password or url.query or url.fragment:
        return False
    if url.scheme != "http":
        return url.scheme == "https"
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


_PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
"""Addresses of networks of one's own (RFC 1918, RFC 4193)."""


def is_private_address(host: str) -> bool:
    """Whether the host is an IP address of a private network, such as a VPC."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in _PRIVATE if network.version == address.version)


def is_private_http_url(value: str) -> bool:
    """Whether it is http:// at a private address: Private Service Connect is reached by that."""
    try:
        url = urlsplit(value)
        private = url.scheme == "http" and is_private_address(url.hostname or "")
    except ValueError:
        return False
    return private and is_safe_url(f"https{value[4:]}")


_TABLE = (
    Setting(
        key="model",
        variable="T2I_MODEL",
        takes="an alias, a repository on the Hub, or a folder",
        accepts=_is_text,
        default=DEFAULT_MODEL,
    ),
    Setting(
        key="backend",
        variable="T2I_BACKEND",
        takes=join_choices(BACKENDS),
        accepts=BACKENDS.__contains__,
        default="local",
        choices=BACKENDS,
    ),
    Setting(
        key="device",
        variable="T2I_DEVICE",
        takes="cuda, cuda:1, rocm, xpu, mps or cpu",
        accepts=re.compile(r"cpu|mps|(cuda|rocm|xpu)(:\d+)?").fullmatch,
        default="the best",
        choices=DEVICES,
    ),
    Setting(
        key="dtype",
        variable="T2I_DTYPE",
        takes="float16 (fp16), bfloat16 (bf16) or float32 (fp32)",
        accepts=DTYPES.__contains__,
        default="what suits the device",
        choices=DTYPES,
        spellings=DTYPE_SPELLINGS,
    ),
    Setting(
        key="memory",
        variable="T2I_MEMORY",
        takes=join_choices(MEMORY),
        accepts=MEMORY.__contains__,
        default="auto",
        choices=MEMORY,
    ),
    Setting(
        key="compile",
        variable="T2I_COMPILE",
        takes=join_choices(COMPILE),
        accepts=COMPILE.__contains__,
        default="auto",
        choices=COMPILE,
    ),
    Setting(
        key="lora_dir",
        variable="T2I_LORA_DIR",
        takes="a folder of LoRAs and embeddings that requests, prompts and clients may name",
        accepts=_is_text,
        default="none",
    ),
    Setting(
        key="keep_alive",
        variable="T2I_KEEP_ALIVE",
        takes="a duration as 90s, 10m or 1h30m, or 0 for off",
        accepts=lambda value: durations.parse_duration(value) is not None,
        default="0",
    ),
    Setting(
        key="format",
        variable="T2I_FORMAT",
        takes=join_choices(image_formats.EXTENSIONS),
        accepts=lambda value: value.lower() in image_formats.IMAGE_FORMATS,
        default="from the name, else png",
        choices=tuple(image_formats.EXTENSIONS),
    ),
    Setting(
        key="output",
        variable="T2I_OUTPUT",
        takes="a file, a folder/, a template or a URL",
        accepts=_is_text,
        default="{slug}-{seed}.{ext}",
    ),
    Setting(
        key="styles",
        variable="T2I_STYLES",
        takes="a CSV file of styles",
        accepts=_is_text,
    ),
    Setting(
        key="retries",
        variable="T2I_RETRIES",
        takes="how often a call to a server is tried again, as 5",
        accepts=re.compile(r"\d{1,3}").fullmatch,
        default=str(defaults.RETRIES),
    ),
    Setting(
        key="timeout",
        variable="T2I_TIMEOUT",
        takes="the seconds that a server has for an image, as 600",
        accepts=re.compile(r"(?=.*[1-9])\d{1,6}(\.\d{1,3})?").fullmatch,
        default=str(defaults.TIMEOUT),
    ),
    Setting(
        key="concurrency",
        variable="T2I_CONCURRENCY",
        takes="how many calls to a server are in flight, 1 to 256",
        accepts=re.compile(r"[1-9]\d?|1\d\d|2[0-4]\d|25[0-6]").fullmatch,
        default=f"{defaults.CONCURRENCY}; vertex: {defaults.CALLS_A_REPLICA} for each replica",
    ),
    Setting(
        key="http_url",
        variable="T2I_HTTP_URL",
        takes="the base of an images API, as http://host:port/v1",
        accepts=re.compile(r"https?://[^\s@?#]+").fullmatch,
    ),
    Setting(
        key="http_dialect",
        variable="T2I_HTTP_DIALECT",
        takes=join_choices(DIALECTS),
        accepts=DIALECTS.__contains__,
        default="as the server says",
        choices=tuple(DIALECTS),
    ),
    Setting(
        key="http_api_key",
        variable="T2I_HTTP_API_KEY",
        takes="the key of the server at http_url, in letters, digits and signs",
        accepts=re.compile(r"[!-~]+").fullmatch,
        secret=True,
    ),
    Setting(
        key="hf_provider",
        variable="T2I_HF_PROVIDER",
        takes="a provider on the Hub, as fal-ai, or auto for the first of your order there",
        accepts=re.compile(r"[a-z0-9][a-z0-9-]{0,63}").fullmatch,
        default="auto",
    ),
    Setting(
        key="hf_bill_to",
        variable="T2I_HF_BILL_TO",
        takes="an organisation on the Hub",
        accepts=re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}").fullmatch,
        default="your own account",
    ),
    Setting(
        key="ray_address",
        variable="T2I_RAY_ADDRESS",
        takes="local, auto, host:port, or ray://host:port of a Ray cluster",
        accepts=re.compile(
            r"local|auto|(ray://)?[^\s/@?#:]+:\d{1,5}|(ray://)?\[[\da-fA-F:]+\]:\d{1,5}"
        ).fullmatch,
        default="local: Ray is started on this machine",
    ),
    Setting(
        key="ray_workers",
        variable="T2I_RAY_WORKERS",
        takes="auto, or how many processes hold a model, 1 to 4096",
        accepts=_is_worker_count,
        default="auto: one for each GPU",
    ),
    Setting(
        key="ray_gpus_per_worker",
        variable="T2I_RAY_GPUS_PER_WORKER",
        takes="the GPUs of one worker: a fraction as 0.5, or 1",
        accepts=re.compile(r"0?\.\d{0,3}[1-9]|1(\.0*)?").fullmatch,
        default="1",
    ),
    Setting(
        key="ray_worker_timeout",
        variable="T2I_RAY_WORKER_TIMEOUT",
        takes="the seconds without a sign of a worker after which it is replaced, as 600",
        accepts=re.compile(r"(?=.*[1-9])\d{1,6}(\.\d{1,3})?").fullmatch,
        default=str(defaults.WORKER_TIMEOUT),
    ),
    Setting(
        key="vertex_endpoint",
        variable="T2I_VERTEX_ENDPOINT",
        takes="an endpoint's number or full resource name",
        accepts=re.compile(r"(projects/[\w.:-]+/locations/[\w-]+/endpoints/)?[\w-]+").fullmatch,
        default="the one deployed last",
    ),
    Setting(
        key="vertex_project",
        variable="T2I_VERTEX_PROJECT",
        takes="a Google Cloud project's id or number",
        accepts=re.compile(r"[a-z0-9][a-z0-9.:-]*").fullmatch,
        default="the credentials'",
    ),
    Setting(
        key="vertex_region",
        variable="T2I_VERTEX_REGION",
        takes="a region of Google Cloud, as us-central1, or several, as us-central1,europe-west4",
        accepts=re.compile(r"[a-z]+-[a-z]+\d+(, ?[a-z]+-[a-z]+\d+)*").fullmatch,
        default=defaults.REGION,
    ),
    Setting(
        key="vertex_api_endpoint",
        variable="T2I_VERTEX_API_ENDPOINT",
        takes="a URL with https://, or with http:// on this machine or at a private IP address",
        accepts=lambda value: is_safe_url(value) or is_private_http_url(value),
    ),
    Setting(
        key="vertex_ca_file",
        variable="T2I_VERTEX_CA_FILE",
        takes="a file of certificates in PEM",
        accepts=_is_text,
        default="the usual certificates",
    ),
    Setting(
        key="vertex_image",
        variable="T2I_VERTEX_IMAGE",
        takes="a container image, as us-central1-docker.pkg.dev/PROJECT/REPOSITORY/t2i:TAG",
        accepts=re.compile(
            r"[\w.-]+(:\d+)?(/[\w.-]+)+(:[\w.-]+)?(@sha256:[0-9a-f]{64})?"
        ).fullmatch,
    ),
    Setting(
        key="vertex_bucket",
        variable="T2I_VERTEX_BUCKET",
        takes="a bucket's name",
        accepts=re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]").fullmatch,
        default="t2i-PROJECT-REGION",
    ),
    Setting(
        key="vertex_prices",
        variable="T2I_VERTEX_PRICES",
        takes="a TOML file with a date and USD an hour under [machines], [accelerators], [spot] "
        "and [flex-start]",
        accepts=_is_text,
    ),
    Setting(
        key="gemini_model",
        variable="T2I_GEMINI_MODEL",
        takes="an image model of Google's, as gemini-3-pro-image",
        accepts=re.compile(r"gemini-[a-z0-9][a-z0-9.-]{0,99}").fullmatch,
        default=defaults.GEMINI_MODEL,
    ),
    Setting(
        key="gemini_region",
        variable="T2I_GEMINI_REGION",
        takes="global, us, eu, or a region of Google Cloud",
        accepts=re.compile(r"global|us|eu|[a-z]+-[a-z]+\d+").fullmatch,
        default=defaults.GEMINI_REGION,
    ),
    Setting(
        key="image_prices",
        variable="T2I_IMAGE_PRICES",
        takes="a TOML file with a date and USD an image under [images], by model",
        accepts=_is_text,
    ),
)

SETTINGS: dict[str, Setting] = {setting.key: setting for setting in _TABLE}
