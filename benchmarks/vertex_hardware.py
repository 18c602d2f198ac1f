"""Writes the table of Vertex AI's machines: `python -m benchmarks.vertex_hardware`.

The facts stand below with their sources; src/t2i_cli/vertex/hardware.json is what follows from
them, machine by machine. `docs/generate.py --check` compares the two. What no source tells is
`null` there. Sources:

- shapes of machines, and which GPUs N1 takes: Google's "Configure compute resources for inference"
  and "GPU machine types" (D);
- regions, and what Compute Engine asks in us-central1: SkyPilot's catalogue of Compute Engine,
  catalogs/v8/gcp/vms.csv (skypilot-org/skypilot-catalog, commit 006059e0), which is made from
  Google's price list (S). Vertex AI has no more regions than Compute Engine, and may have fewer;
- Vertex AI asks 15 % more than Compute Engine: so it is for each price that is known of both, as
  n1-standard-4 (0.21849885 for 0.19), a2-highgpu-1g (4.2244 for 3.67339) and g2-standard-4 (0.8129
  for 0.70683). Every price of Vertex AI's below is derived so, spot prices too;
- quota identifiers: the Google Cloud SDK, command_lib/ai/model_garden_utils.py;
- ends of the P100 on 15 September 2026 and of the K80 on 1 May 2024: Google's deprecations (D).
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "src" / "t2i_cli" / "vertex" / "hardware.json"
DATE = "November 2026, us-central1"
FEE = 1.15
"""What Vertex AI asks for each USD of Compute Engine's."""

_L4 = (
    "asia-east1 asia-northeast1 asia-northeast3 asia-south1 asia-southeast1 europe-west1 "
    "europe-west2 europe-west3 europe-west4 europe-west6 me-central2 northamerica-northeast1 "
    "northamerica-northeast2 us-central1 us-east1 us-east4 us-west1 us-west4"
)
_A100 = (
    "asia-northeast1 asia-northeast3 asia-southeast1 europe-west4 me-west1 us-central1 us-east1 "
    "us-west1 us-west3 us-west4"
)
_A100_MEGA = "asia-southeast1 europe-west4 us-central1"
_A100_80GB = "asia-southeast1 europe-west4 us-central1 us-east4 us-east5"
_H100_8 = (
    "asia-east1 asia-northeast1 asia-south1 asia-south2 asia-southeast1 australia-southeast1 "
    "europe-north1 europe-west1 europe-west3 europe-west4 europe-west9 us-central1 us-east4 "
    "us-east5 us-west1 us-west4"
)
_H100 = f"{_H100_8} europe-west8"
_H100_MEGA = (
    "asia-east1 asia-northeast1 asia-southeast1 australia-southeast1 europe-north1 europe-west1 "
    "europe-west3 europe-west4 us-central1 us-east4 us-east5 us-west1 us-west4"
)
_H200 = (
    "asia-south1 asia-south2 europe-west1 europe-west4 us-central1 us-east4 us-east5 us-south1 "
    "us-west1"
)
_B200 = (
    "asia-northeast1 asia-southeast1 europe-north1 europe-west4 us-central1 us-east1 us-east4 "
    "us-south1 us-west2 us-west3"
)
_T4 = (
    "asia-east1 asia-east2 asia-northeast1 asia-northeast3 asia-south1 asia-southeast1 "
    "asia-southeast2 australia-southeast1 europe-central2 europe-west1 europe-west2 europe-west3 "
    "europe-west4 me-west1 northamerica-northeast1 southamerica-east1 us-central1 us-east1 "
    "us-east4 us-west1 us-west2 us-west3 us-west4"
)
_P4 = (
    "asia-southeast1 australia-southeast1 europe-west4 northamerica-northeast1 us-central1 "
    "us-east4 us-west2"
)
_V100 = "asia-east1 europe-west4 us-central1 us-east1 us-west1"
_P100 = "asia-east1 australia-southeast1 europe-west1 europe-west4 us-central1 us-east1 us-west1"


def _accelerator(
    memory: int,
    quota: str | None = None,
    regions: str | None = None,
    price: tuple[float, float] | None = None,
    ended: str | None = None,
) -> dict[str, Any]:
    """An accelerator with its memory in GiB; `price` is Compute Engine's of one on N1, and spot."""
    return {
        "memory_gib": memory,
        "quota_id": quota and f"CustomModelServing{quota}GPUsPerProjectPerRegion",
        "regions": regions and sorted(regions.split()),
        "usd_per_hour": price and _vertex_price(price[0]),
        "spot_usd_per_hour": price and _vertex_price(price[1]),
        "ended": ended,
    }


def _vertex_price(compute_engine: float) -> float:
    return round(compute_engine * FEE, 2)


ACCELERATORS: Mapping[str, Mapping[str, Any]] = {
    "NVIDIA_TESLA_T4": _accelerator(16, "T4", _T4, (0.35, 0.175)),
    "NVIDIA_TESLA_P4": _accelerator(8, "P4", _P4, (0.6, 0.2236)),
    "NVIDIA_TESLA_V100": _accelerator(16, "V100", _V100, (2.48, 1.0885)),
    "NVIDIA_TESLA_P100": _accelerator(16, "P100", _P100, (1.46, 0.7034), "2026-09-15"),
    "NVIDIA_TESLA_K80": _accelerator(12, "K80", ended="2024-05-01"),
    "NVIDIA_L4": _accelerator(24, "L4"),
    "NVIDIA_RTX_PRO_6000": _accelerator(96, "RTXPRO6000"),
    "NVIDIA_TESLA_A100": _accelerator(40, "A100"),
    "NVIDIA_A100_80GB": _accelerator(80, "A10080GB"),
    "NVIDIA_H100_80GB": _accelerator(80, "H100"),
    "NVIDIA_H100_MEGA_80GB": _accelerator(80),
    "NVIDIA_H200_141GB": _accelerator(141),
    "NVIDIA_B200": _accelerator(180),
}

_N1_CPUS = (2, 4, 8, 16, 32)
_N1_KINDS = {"standard": (3.75, 0.0475), "highmem": (6.5, 0.05915), "highcpu": (0.9, 0.03545)}
"""GiB of memory and USD of Compute Engine's for a vCPU."""
_N1_GPUS = {
    "NVIDIA_TESLA_T4": {16: (1, 2, 4), 32: (2, 4)},
    "NVIDIA_TESLA_P4": {16: (1, 2, 4), 32: (2, 4)},
    "NVIDIA_TESLA_V100": {8: (1, 2, 4, 8), 16: (2, 4, 8), 32: (4, 8)},
    "NVIDIA_TESLA_P100": {16: (1, 2, 4), 32: (2, 4)},
}
"""How many GPUs N1 takes, up to so many vCPUs."""
_L4_HOST, _L4_GPU = (0.146793, 0.058737), (0.56004, 0.2231)
"""USD of Compute Engine's for four vCPUs with 16 GiB, and for an L4; on demand and spot."""


def _machine(
    cpus: int,
    memory: float,
    accelerator: str,
    count: int,
    regions: str | None,
    price: tuple[float, float | None] | None,
) -> dict[str, Any]:
    """A machine that comes with accelerators; `price` is Compute Engine's, on demand and spot."""
    return {
        "vcpus": cpus,
        "memory_gib": memory,
        "accelerators": {accelerator: [count]},
        "included": True,
        "regions": regions and sorted(regions.split()),
        "usd_per_hour": price and _vertex_price(price[0]),
        "spot_usd_per_hour": _vertex_price(price[1]) if price and price[1] is not None else None,
    }


def _times(count: int, *prices: tuple[float, float]) -> tuple[float, float]:
    """The sum of prices, so many times."""
    return count * sum(one for one, _ in prices), count * sum(spot for _, spot in prices)


def machines() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every machine type with its facts."""
    for kind, (memory, price) in _N1_KINDS.items():
        for cpus in _N1_CPUS:
            gpus = {
                name: next(counts for most, counts in limits.items() if cpus <= most)
                for name, limits in _N1_GPUS.items()
            }
            yield (
                f"n1-{kind}-{cpus}",
                {
                    "vcpus": cpus,
                    "memory_gib": round(cpus * memory, 2),
                    "accelerators": {name: list(counts) for name, counts in gpus.items()},
                    "included": False,
                    "regions": None,
                    "usd_per_hour": _vertex_price(cpus * price),
                    "spot_usd_per_hour": None,
                },
            )
    for cpus, count in ((4, 1), (8, 1), (12, 1), (16, 1), (24, 2), (32, 1), (48, 4), (96, 8)):
        host, gpus_price = _times(cpus // 4, _L4_HOST), _times(count, _L4_GPU)
        price_of = _times(1, host, gpus_price)
        yield f"g2-standard-{cpus}", _machine(cpus, cpus * 4, "NVIDIA_L4", count, _L4, price_of)
    for count in (1, 2, 4, 8):
        # 4.50 USD for the smallest (S, July 2026); where it is offered is not known.
        cpus, gpu = 48 * count, "NVIDIA_RTX_PRO_6000"
        one = _machine(cpus, 180 * count, gpu, count, None, (4.5 * count, None))
        yield f"g4-standard-{cpus}", one
    for count in (1, 2, 4, 8):
        price_of = _times(count, (0.73948, 0.36975), (2.93391, 1.4341))
        one = _machine(12 * count, 85 * count, "NVIDIA_TESLA_A100", count, _A100, price_of)
        yield f"a2-highgpu-{count}g", one
    price_of = _times(1, (8.79698, 4.39824), (46.94253, 22.9456))
    yield "a2-megagpu-16g", _machine(96, 1360, "NVIDIA_TESLA_A100", 16, _A100_MEGA, price_of)
    for count in (1, 2, 4, 8):
        price_of = _times(count, (1.09962, 0.54978), (3.928, 1.964))
        one = _machine(12 * count, 170 * count, "NVIDIA_A100_80GB", count, _A100_80GB, price_of)
        yield f"a2-ultragpu-{count}g", one
    for count in (1, 2, 4, 8):
        where = _H100_8 if count == 8 else _H100
        price_of = _times(count, (1.18251, 0.36117), (9.79655, 2.9926))
        one = _machine(26 * count, 234 * count, "NVIDIA_H100_80GB", count, where, price_of)
        yield f"a3-highgpu-{count}g", one
    price_of = _times(1, (9.46006, 2.88933), (82.75421, 25.2808))
    yield "a3-megagpu-8g", _machine(208, 1872, "NVIDIA_H100_MEGA_80GB", 8, _H100_MEGA, price_of)
    price_of = _times(1, (12.266, 3.74713), (74.49392, 37.2472))
    yield "a3-ultragpu-8g", _machine(224, 2952, "NVIDIA_H200_141GB", 8, _H200, price_of)
    yield "a4-highgpu-8g", _machine(224, 3968, "NVIDIA_B200", 8, _B200, None)


def hardware_json() -> str:
    """The content of hardware.json, a machine a line."""
    source = "https://cloud.google.com/vertex-ai/docs/predictions/configure-compute"
    parts: dict[str, Mapping[str, object]] = {
        "accelerators": dict(ACCELERATORS),
        "machines": dict(machines()),
    }
    head = {"date": DATE, "source": source, "made_by": "benchmarks/vertex_hardware.py"}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key, rows in parts.items():
        body = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        lines.append(f" {json.dumps(key)}: {{\n{body}\n }}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(hardware_json(), encoding="utf-8")
    sys.stdout.write(f"{FILE}\n")
