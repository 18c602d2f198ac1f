"""Provenance of an image beside its request: backend, commit, device, precision, versions."""

from dataclasses import dataclass, field, fields


@dataclass(frozen=True, kw_only=True)
class GenerationInfo:
    """Generation info, written into the image and into manifests under the key `lock`.

    `endpoint` (a server's address or an endpoint's name), `deployed_model` and `seed_confirmed`
    (whether the server confirmed the request's seed) are of remote images only. `threads` is the
    number of torch's threads, of images from this machine's CPU only. `engine` is how the denoiser
    was computed ("eager", "cuda-graph", "compiled"), `attention` with which attention ("sdpa",
    "flash-attention-3", "sliced"). `vae_tile` is the side in pixels of the tiles that the image was
    decoded in, `None` where it was decoded whole. `sha256` is that of the single file that the
    model was loaded from. `own_name` is the name of the user's own that stood for the
    model. `model_version` and `response_id` are what
    Google says made the image and which answer it was, `tokens` its counts of them, which are what
    it bills.
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
    threads: int | None = None
    engine: str | None = None
    attention: str | None = None
    vae_tile: int | None = None
    sha256: str | None = None
    own_name: str | None = None
    model_version: str | None = None
    response_id: str | None = None
    tokens: dict[str, int] | None = None
    libraries: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """The fields in their order; fields added later only if they are set."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values |= {"measures": list(self.measures), "libraries": dict(self.libraries)}
        return {
            name: value
            for name, value in values.items()
            if value is not None or name not in _ADDED_FIELDS
        }


_ADDED_FIELDS = frozenset(
    {
        "threads",
        "engine",
        "attention",
        "vae_tile",
        "sha256",
        "own_name",
        "model_version",
        "response_id",
        "tokens",
    }
)
"""Fields that earlier versions did not write: absent from records where they say nothing."""
