"""Provenance of an image beside its request: backend, commit, device, precision, versions."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class GenerationInfo:
    """Generation info, written into the image and into manifests under the key `lock`.

    `endpoint` (a server's address or an endpoint's name), `deployed_model` and `seed_confirmed`
    (whether the server confirmed the request's seed) are of remote images only.
    """

    backend: str
    model: str
    revision: str | None = None
    pipeline: str | None = None
    scheduler: str | None = None
    device: str | None = None
    dtype: str | None = None
    batch_size: int | None = None
    measures: tuple[str, ...] = ()
    endpoint: str | None = None
    deployed_model: str | None = None
    seed_confirmed: bool | None = None
    libraries: dict[str, str] = field(default_factory=dict)
