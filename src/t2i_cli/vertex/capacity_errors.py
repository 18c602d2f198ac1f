"""Says where machines or quota for a deployment are lacking, and what would do."""

from collections.abc import Iterator
from contextlib import contextmanager

from t2i_cli.net.google_errors import exhausted_text
from t2i_cli.net.google_http import CapacityError
from t2i_cli.vertex import hardware_table, machine_search
from t2i_cli.vertex.location import Location
from t2i_cli.vertex.machine_types import ReplicaHardware
from t2i_cli.vertex.model_memory import ModelMemory

_NEAREST = 3
"""Regions and machines that a hint names at most."""


@contextmanager
def explaining_capacity(
    location: Location, hardware: ReplicaHardware, need: ModelMemory | None
) -> Iterator[None]:
    """Have a CapacityError of the block name the region, the project and the hardware.

    Its hint names the nearest regions with such machines, and other machines of the region that
    hold a model that needs so much.
    """
    try:
        yield
    except CapacityError as error:
        error.message, hint = exhausted_text(
            error.google_message,
            region=location.region,
            project=location.project,
            machine=hardware.text(),
        )
        error.hint = " ".join(filter(None, (hint, *_alternatives(location, hardware, need))))
        raise


def _alternatives(
    location: Location, hardware: ReplicaHardware, need: ModelMemory | None
) -> Iterator[str]:
    """Sentences on other regions for the hardware, and other hardware for the region."""
    regions = hardware_table.regions_of(hardware.machine, hardware.accelerator) or ()
    near = machine_search.nearest_regions(set(regions) - {location.region}, location.region)
    if near:
        yield f"The nearest regions with such machines: {', '.join(near[:_NEAREST])}."
    if hardware.accelerator is None:
        return
    holding = machine_search.machines_holding(None, None, need, location.region)
    others = [
        name
        for name in holding
        if hardware.accelerator not in hardware_table.hardware_table().machines[name].accelerators
    ]
    if others:
        yield f"Machines of {location.region} with others: {', '.join(others[:_NEAREST])}."
