"""What a plan says: memory needed and free, and the measures that make a request fit."""

from dataclasses import asdict, dataclass

from t2i_cli.backends.local.memory import VAE_TILING, Measures


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How a request would be run: memory needed and free, in MiB, and the measures applied.

    `weights_mib` is an estimate if part of the model is still to be downloaded. `working_mib` is
    `None` if the model's configs do not tell it. `vae_tile` is the side of the decode's tiles in
    pixels, `peak_mib` what is on the device at most. `cuda_graphs_mib` is what recordings of CUDA
    graphs hold of it: 0 if they are left out for want of memory, `None` where they are not planned.
    """

    device: str
    device_name: str
    dtype: str
    free_mib: int
    total_mib: int
    weights_mib: int
    working_mib: int | None
    measures: Measures
    download_mib: int
    vae_tile: int | None = None
    peak_mib: int | None = None
    cuda_graphs_mib: int | None = None

    def to_json(self) -> dict[str, object]:
        """The plan as --dry-run prints it."""
        return asdict(self) | {"measures": list(self.measures)}

    def text(self) -> str:
        """The plan as -v prints it."""
        working = "unknown memory" if self.working_mib is None else f"{self.working_mib:,} MiB"
        tile = "" if self.vae_tile is None else f" (of {self.vae_tile} px)"
        measures = [m + tile if m == VAE_TILING else m for m in self.measures]
        return (
            f"plan: {self.dtype} on {self.device} ({self.device_name}), "
            f"{self.weights_mib:,} MiB of weights and {working} to work with, "
            f"{self.free_mib:,} of {self.total_mib:,} MiB free; "
            f"measures: {', '.join(measures) or 'none'}{self._graphs_text()}"
        )

    def _graphs_text(self) -> str:
        if self.cuda_graphs_mib is None:
            return ""
        held = (
            f"{self.cuda_graphs_mib:,} MiB" if self.cuda_graphs_mib else "no memory left for them"
        )
        return f"; CUDA graphs: {held}"
