"""What a batch's images took of the memory, beside what was planned."""

from t2i_cli.backends.local.device import Device
from t2i_cli.backends.local.memory import MIB
from t2i_cli.backends.local.memory_plan import MemoryPlan
from t2i_cli.errors import error_reason
from t2i_cli.terminal.console import console


def start_peak(device: Device) -> None:
    """Count the peak of a GPU's allocations anew."""
    if _is_counted(device):
        import torch

        torch.cuda.reset_peak_memory_stats(device.name)


def memory_use(device: Device, plan: MemoryPlan | None) -> dict[str, int] | None:
    """MiB by name: the plan's weights and working memory, and on a GPU the peak since the start."""
    if plan is None:
        return None
    used = {"weights_mib": plan.weights_mib}
    if plan.working_mib is not None:
        used["working_mib"] = plan.working_mib
    if _is_counted(device):
        import torch

        try:
            used["peak_mib"] = torch.cuda.max_memory_allocated(device.name) // MIB
        except RuntimeError as error:  # a figure is not worth an image
            console.trace(f"the peak of the memory cannot be read: {error_reason(error)}")
        else:
            planned = "unknown" if plan.peak_mib is None else f"{plan.peak_mib:,}"
            console.trace(f"memory: {planned} MiB planned, {used['peak_mib']:,} MiB at most")
    return used


def _is_counted(device: Device) -> bool:
    """Whether torch counts the peak: on CUDA and ROCm, which it both names so."""
    return device.name.startswith("cuda")
