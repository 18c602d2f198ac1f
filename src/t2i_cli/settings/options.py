"""Groups of command line options about where and how images are generated.

Each is a frozen dataclass that is passed on as a whole. The command line derives its options from
the `Flag` of each field; a field without one is no option.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from t2i_cli.request_fields import DEFAULT_MODEL, SERVINGS
from t2i_cli.settings import defaults
from t2i_cli.settings.schema import SETTINGS, join_choices


@dataclass(frozen=True)
class Flag:
    """A field's command line option: its names, the first being the main one, help and range."""

    names: tuple[str, ...]
    help: str
    min: float | None = None
    max: float | None = None


def flag(*names: str, help: str, min: float | None = None, max: float | None = None) -> Flag:
    """A Flag with these names."""
    return Flag(names, help, min, max)


def _takes(key: str) -> str:
    """The description of a setting's valid values."""
    return SETTINGS[key].takes


def _default(key: str) -> str:
    """What applies where neither the option nor the setting is given, as help shows it."""
    return f"[default: {SETTINGS[key].default}]"


@dataclass(frozen=True, kw_only=True)
class HttpServerOptions:
    """The server of an OpenAI images API."""

    PANEL: ClassVar = "HTTP server"

    url: Annotated[
        str | None, flag("--url", help="http: the images API, as http://host:port/v1.")
    ] = None
    dialect: Annotated[
        str | None,
        flag("--dialect", help=f"http: {_takes('http_dialect')}. {_default('http_dialect')}"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class InferenceProviderOptions:
    """The provider on the Hub that makes the images, and who is billed."""

    PANEL: ClassVar = "Hugging Face Inference Providers"

    provider: Annotated[
        str | None,
        flag("--provider", help=f"hf: {_takes('hf_provider')}. {_default('hf_provider')}"),
    ] = None
    bill_to: Annotated[
        str | None,
        flag(
            "--bill-to",
            help=f"hf: {_takes('hf_bill_to')} that pays. {_default('hf_bill_to')}",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ProjectOptions:
    """Google Cloud project and region."""

    PANEL: ClassVar = "Vertex AI"

    project: Annotated[
        str | None,
        flag("--project", help=f"vertex, gemini: the project. {_default('vertex_project')}"),
    ] = None
    region: Annotated[
        str | None,
        flag(
            "--region",
            help="vertex, gemini: the region, or several for a deployment to try in turn, as A,B. "
            f"[default: {defaults.REGION}; gemini: {defaults.GEMINI_REGION}]",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class LocationOptions(ProjectOptions):
    """Google Cloud project, region and API host."""

    api_endpoint: Annotated[
        str | None,
        flag("--api-endpoint", help="vertex, gemini: a URL in place of Google's own hosts."),
    ] = None
    ca_file: Annotated[
        str | None,
        flag(
            "--ca-file",
            help="vertex, gemini: trust the certificates in this PEM file, and no others. "
            f"{_default('vertex_ca_file')}",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class EndpointOptions(LocationOptions):
    """Endpoint of Vertex AI, and the kind of serving there."""

    endpoint: Annotated[
        str | None,
        flag("--endpoint", help=f"vertex: number or full name. {_default('vertex_endpoint')}"),
    ] = None
    serving: Annotated[
        str | None,
        flag(
            "--serving",
            help=f"vertex: {join_choices(SERVINGS)}. [default: as the endpoint's label says]",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class CallOptions:
    """Retries, timeout (seconds) and concurrency of requests to a server."""

    PANEL: ClassVar = "Calls of servers"

    retries: Annotated[
        int | None,
        flag(
            "--retries",
            min=0,
            max=999,
            help=f"http, vertex, gemini, hf: tries after the first. {_default('retries')}",
        ),
    ] = None
    timeout: Annotated[
        float | None,
        flag(
            "--timeout",
            min=0.001,
            help="http, vertex, gemini, hf: seconds for one image, retries included. "
            f"{_default('timeout')}",
        ),
    ] = None
    concurrency: Annotated[
        int | None,
        flag(
            "--concurrency",
            min=1,
            max=256,
            help=f"http, vertex, gemini, hf: calls in flight. {_default('concurrency')}",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The Ray cluster, and its workers, each of which holds a model."""

    PANEL: ClassVar = "Ray"

    address: Annotated[
        str | None,
        flag("--address", help=f"ray: {_takes('ray_address')}. {_default('ray_address')}"),
    ] = None
    workers: Annotated[
        str | None,
        flag("--workers", help=f"ray: {_takes('ray_workers')}. {_default('ray_workers')}"),
    ] = None
    gpus_per_worker: Annotated[
        str | None,
        flag(
            "--gpus-per-worker",
            help=f"ray: {_takes('ray_gpus_per_worker')}. {_default('ray_gpus_per_worker')}",
        ),
    ] = None
    worker_timeout: Annotated[
        str | None,
        flag(
            "--worker-timeout",
            help=f"ray: {_takes('ray_worker_timeout')}. {_default('ray_worker_timeout')}",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Device, precision and memory use of the local backend, and of Ray's workers."""

    PANEL: ClassVar = "This machine"

    device: Annotated[
        str | None,
        flag(
            "--device",
            help=f"{_takes('device')}; all for every GPU, as --backend ray. {_default('device')}",
        ),
    ] = None
    dtype: Annotated[
        str | None, flag("--dtype", help=f"{_takes('dtype')}. {_default('dtype')}")
    ] = None
    memory: Annotated[
        str | None,
        flag(
            "--memory",
            help="auto fits the model to the memory; fast never trades speed; low saves all it "
            f"can. {_default('memory')}",
        ),
    ] = None
    compile: Annotated[
        str | None,
        flag(
            "--compile",
            help="auto compiles the model where the images left repay it; on at once; off never. "
            f"{_default('compile')}",
        ),
    ] = None
    attention_slicing: Annotated[
        bool | None,
        flag(
            "--attention-slicing/--no-attention-slicing",
            help="Compute attention in slices: less memory, slower."
            " [default: where memory is short]",
        ),
    ] = None
    lora_dir: Annotated[
        str | None,
        flag(
            "--lora-dir",
            help=f"Folder of LoRAs and embeddings that requests, prompts and clients may name. "
            f"{_default('lora_dir')}",
        ),
    ] = None
    clear_cache: Annotated[
        bool, flag("--clear-cache", help="Empty the device's cache after every pass.")
    ] = False
    trust_remote_code: Annotated[
        bool, flag("--trust-remote-code", help="Run Python code that the repository brings.")
    ] = False
    no_safety_checker: Annotated[
        bool, flag("--no-safety-checker", help="Leave out the model's safety checker.")
    ] = False
    offline: Annotated[bool, flag("--offline", help="Contact nothing; use what is downloaded.")] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class KeepAliveOptions:
    """How long a model stays loaded in the background."""

    PANEL: ClassVar = "This machine"

    keep_alive: Annotated[
        str | None,
        flag(
            "--keep-alive",
            help="Keep the model warm in the background for so long after the image, as 90s or "
            f"10m; 0 for not. {_default('keep_alive')}",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """The limit of what images may cost that are billed one by one."""

    PANEL: ClassVar = "Calls of servers"

    max_cost: Annotated[
        float | None,
        flag(
            "--max-cost",
            min=0,
            help="gemini, hf: make no more images than cost so many USD together, each run. "
            "batch --ephemeral: refuse an endpoint that could cost more until its TTL.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """Backend and its options."""

    PANEL: ClassVar = "Backend"

    backend: Annotated[
        str | None,
        flag(
            "--backend", help=f"Where images are made: {_takes('backend')}. {_default('backend')}"
        ),
    ] = None
    http: HttpServerOptions = HttpServerOptions()
    hf: InferenceProviderOptions = InferenceProviderOptions()
    endpoint: EndpointOptions = EndpointOptions()
    calls: CallOptions = CallOptions()
    cost: CostOptions = CostOptions()
    device: DeviceOptions = DeviceOptions()
    cluster: ClusterOptions = ClusterOptions()


@dataclass(frozen=True, kw_only=True)
class DeploymentSpec:
    """A requested deployment; `None` means not set."""

    PANEL: ClassVar = "Deployment"

    model: Annotated[
        str | None,
        flag(
            "--model",
            "-m",
            help=f"Alias, repository on the Hub, folder, or gs://... [default: {DEFAULT_MODEL}]",
        ),
    ] = None
    machine_type: Annotated[
        str | None, flag("--machine-type", help="As g2-standard-4. [default: by the model]")
    ] = None
    accelerator: Annotated[
        str | None, flag("--accelerator", help="As T4 or NVIDIA_TESLA_T4:1, or none.")
    ] = None
    min_replicas: Annotated[int, flag("--min-replicas", help="Always running.")] = 1
    max_replicas: Annotated[int, flag("--max-replicas", help="Running under load.")] = 1
    ttl: Annotated[str, flag("--ttl", help="How long it may live, as 90m or 2h.")] = defaults.TTL
    max_cost: Annotated[
        float | None, flag("--max-cost", help="Refuse if it could cost more USD until its TTL.")
    ] = None
    scale_to_zero: Annotated[
        str | None,
        flag("--scale-to-zero", help="Stop all replicas after so long idle, as 15m (Preview)."),
    ] = None
    flex_start: Annotated[
        bool | None,
        flag(
            "--flex-start/--no-flex-start",
            help="Have Google itself undeploy at the end of the TTL, by flex-start (Preview). "
            "[default: deploy asks, on a terminal]",
        ),
    ] = None
    spot: Annotated[
        bool, flag("--spot", help="Cheaper machines that Google may take back at any time.")
    ] = False
    reservation: Annotated[
        str | None,
        flag("--reservation", help="Machines of a reservation: any, none, or ZONE/NAME."),
    ] = None
    serving: Annotated[
        str | None,
        flag(
            "--serving",
            help=f"{join_choices(SERVINGS)}. [default: t2i with an image, else model-garden]",
        ),
    ] = None
    image: Annotated[
        str | None, flag("--image", help="The image of t2i's server, of `t2i remote build`.")
    ] = None
    bucket: Annotated[
        str | None,
        flag("--bucket", help="For weights from here. [default: t2i-PROJECT-REGION]"),
    ] = None
    service_account: Annotated[
        str | None, flag("--service-account", help="The container runs as this one.")
    ] = None
    scheduler_account: Annotated[
        str | None,
        flag(
            "--scheduler-account",
            help="Have a Cloud Scheduler job undeploy after the TTL, as this service account.",
        ),
    ] = None
    name: Annotated[
        str | None, flag("--name", help="Tells it from others. [default: the model's]")
    ] = None
