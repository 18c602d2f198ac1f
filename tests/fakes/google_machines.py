"""Which machines Vertex AI's online prediction has, with which accelerators, in which regions.

An independent table, so that a mistake in t2i's own does not go unnoticed. Sources, as of 2026:
https://cloud.google.com/vertex-ai/docs/predictions/configure-compute (machines, accelerators),
https://cloud.google.com/compute/docs/gpus (how many of them, and with how many vCPUs),
https://cloud.google.com/vertex-ai/docs/general/locations#accelerators (regions; written from
memory, so a region is missing here rather than listed wrongly).
"""

import re
from collections.abc import Mapping

_ATTACHED: Mapping[str, Mapping[int, int]] = {
    "NVIDIA_TESLA_P4": {1: 24, 2: 48, 4: 96},
    "NVIDIA_TESLA_T4": {1: 48, 2: 48, 4: 96},
    "NVIDIA_TESLA_V100": {1: 12, 2: 24, 4: 48, 8: 96},
    "NVIDIA_TESLA_P100": {1: 16, 2: 32, 4: 64},
}
"""Accelerators of n1 machines: their number → the most vCPUs of the machine."""
_BUILT_IN: Mapping[str, tuple[str, int]] = {
    **{f"g2-standard-{cpus}": ("NVIDIA_L4", 1) for cpus in (4, 8, 12, 16, 32)},
    **{f"g2-standard-{cpus}": ("NVIDIA_L4", cpus // 12) for cpus in (24, 48, 96)},
    **{f"g4-standard-{48 * count}": ("NVIDIA_RTX_PRO_6000", count) for count in (1, 2, 4, 8)},
    **{f"a2-highgpu-{count}g": ("NVIDIA_TESLA_A100", count) for count in (1, 2, 4, 8)},
    "a2-megagpu-16g": ("NVIDIA_TESLA_A100", 16),
    **{f"a2-ultragpu-{count}g": ("NVIDIA_A100_80GB", count) for count in (1, 2, 4, 8)},
    **{f"a3-highgpu-{count}g": ("NVIDIA_H100_80GB", count) for count in (1, 2, 4, 8)},
    "a3-megagpu-8g": ("NVIDIA_H100_MEGA_80GB", 8),
    "a3-ultragpu-8g": ("NVIDIA_H200_141GB", 8),
    "a4-highgpu-8g": ("NVIDIA_B200", 8),
    "a4x-highgpu-4g": ("NVIDIA_GB200", 4),
}
"""Machines with accelerators of their own, which a deployment has to name nevertheless."""
_PLAIN = re.compile(
    r"(n1-(standard|highmem|highcpu)|n2-(standard|highmem|highcpu)|n2d-(standard|highmem|highcpu)"
    r"|c2-standard|c2d-(standard|highmem|highcpu)|c3-(standard|highmem|highcpu)|e2-standard"
    r"|e2-highmem|e2-highcpu)-(?P<cpus>2|4|8|16|22|30|32|44|48|56|60|64|80|88|96|112|128|176)"
)
_REGIONS: Mapping[str, frozenset[str]] = {
    accelerator: frozenset(regions.split())
    for accelerator, regions in {
        "NVIDIA_TESLA_T4": "us-central1 us-east1 us-east4 us-west1 us-west2 us-west4 europe-west1 "
        "europe-west2 europe-west3 europe-west4 europe-central2 asia-east1 asia-east2 "
        "asia-northeast1 asia-northeast3 asia-south1 asia-southeast1 asia-southeast2 "
        "australia-southeast1 northamerica-northeast1 southamerica-east1",
        "NVIDIA_TESLA_P4": "us-central1 us-east4 us-west2 europe-west4 asia-southeast1 "
        "australia-southeast1 northamerica-northeast1",
        "NVIDIA_TESLA_V100": "us-central1 us-east1 us-west1 europe-west4 asia-east1",
        "NVIDIA_TESLA_P100": "us-central1 us-east1 us-west1 europe-west1 europe-west4 asia-east1 "
        "australia-southeast1",
        "NVIDIA_L4": "us-central1 us-east1 us-east4 us-west1 us-west4 europe-west1 europe-west2 "
        "europe-west3 europe-west4 europe-west6 asia-east1 asia-northeast1 asia-northeast3 "
        "asia-south1 asia-southeast1 northamerica-northeast2 me-central2",
        "NVIDIA_TESLA_A100": "us-central1 us-east1 us-west1 us-west3 us-west4 europe-west4 "
        "asia-northeast1 asia-northeast3 asia-southeast1 me-west1",
        "NVIDIA_A100_80GB": "us-central1 us-east4 us-east5 europe-west4 asia-southeast1",
        "NVIDIA_H100_80GB": "us-central1 us-east4 us-east5 us-west1 us-west4 europe-west1 "
        "europe-west2 europe-west3 europe-west4 asia-northeast1 asia-south1 asia-southeast1 "
        "australia-southeast1 northamerica-northeast2",
        "NVIDIA_H100_MEGA_80GB": "us-central1 us-east4 us-east5 us-west1 us-west4 europe-west1 "
        "europe-west4 asia-northeast1 asia-southeast1 australia-southeast1",
        "NVIDIA_H200_141GB": "us-central1 us-east1 us-east4 us-east5 us-south1 us-west1 "
        "europe-west1 europe-west4 asia-south2 asia-southeast1",
        "NVIDIA_B200": "us-central1 us-east1 us-east4 us-south1 us-west2 us-west3 europe-west4 "
        "asia-northeast1 asia-southeast1",
        "NVIDIA_GB200": "us-central1 us-east4 us-south1 us-west8",
        "NVIDIA_RTX_PRO_6000": "us-central1 us-east1 us-east4 us-east5 us-south1 us-west4 "
        "europe-west4 asia-southeast1",
    }.items()
}


def machine_fault(machine: str, accelerator: str, count: int, region: str) -> str | None:
    """What is wrong with a machine and its accelerators, as one sentence; None for nothing."""
    if not machine:
        return "machine_type is required."
    if machine not in _BUILT_IN and not _PLAIN.fullmatch(machine):
        return f"Machine type {machine} is not supported."
    if bool(accelerator) != (count > 0):
        return "accelerator_type and accelerator_count must be set together."
    if machine in _BUILT_IN and (accelerator, count) != _BUILT_IN[machine]:
        wanted, number = _BUILT_IN[machine]
        return f"Machine type {machine} must be used with {number} {wanted}."
    if not accelerator:
        return None
    if machine not in _BUILT_IN:
        cpus = int(machine.rsplit("-", 1)[1])
        most = _ATTACHED.get(accelerator, {}).get(count, 0)
        if not machine.startswith("n1-") or cpus > most:
            return f"{count} {accelerator} cannot be attached to machine type {machine}."
    if region not in _REGIONS[accelerator]:
        return f"Accelerator {accelerator} is not available in region {region}."
    return None
