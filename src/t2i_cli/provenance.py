"""How an image came about, beside its request: backend, commit, device, precision, versions."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class GenerationInfo:
    """What, beside the request, made an image what it is; it is written into the image.

    The last three are of images made elsewhere: the server's address or the endpoint's name, the
    model deployed there, and whether the server said that it used the request's seed.
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
