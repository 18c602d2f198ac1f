"""Options of the ray backend, validated before Ray is imported."""

from dataclasses import dataclass

from t2i_cli.backends.local.options import LocalOptions
from t2i_cli.errors import InputError
from t2i_cli.image_formats import ImageFormat

LOCAL_ADDRESS = "local"
"""The address that stands for a Ray that is started on this machine."""
_HOST_DEVICES = ("cpu", "mps")
"""Devices that Ray does not count as GPUs."""


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Options of the ray backend.

    `local` is what each worker's local backend gets. `address` is "local", "auto", "host:port" or
    "ray://host:port". `workers` is `None` for one on each GPU. `format` is the one in which images
    will probably be saved. A worker that gives no sign for `worker_timeout` seconds is replaced.
    """

    local: LocalOptions
    address: str = LOCAL_ADDRESS
    workers: int | None = None
    gpus_per_worker: float = 1.0
    format: ImageFormat = "png"
    worker_timeout: float = 600.0

    @property
    def uses_gpus(self) -> bool:
        """Whether Ray counts the workers' device as a GPU."""
        return self.local.device not in _HOST_DEVICES

    @property
    def worker_device(self) -> str:
        """The device that a worker's images tell: each worker sees its own card as the first."""
        kind = self.local.device or "cuda"
        prefix = {"rocm": "cuda"}.get(kind, kind)
        return f"{prefix}:0" if self.uses_gpus else prefix

    @property
    def starts_ray(self) -> bool:
        """Whether Ray is started on this machine."""
        return self.address == LOCAL_ADDRESS


def check_worker_device(device: str | None, gpus_per_worker: str | None = None) -> None:
    """Raise InputError for a device with a number: Ray chooses the card of each worker.

    Also for a share of a card, as it was given, of workers without one.
    """
    if device in _HOST_DEVICES and gpus_per_worker is not None:
        raise InputError(
            f"--gpus-per-worker means nothing with --device {device}.",
            hint="Leave one of them away.",
            field="gpus_per_worker",
        )
    if device and ":" in device:
        raise InputError(
            f"--device {device} names one card; with --backend ray, Ray gives each worker its own.",
            hint=f"--device {device.partition(':')[0]} takes any of that kind.",
            field="device",
        )
