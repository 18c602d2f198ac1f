"""What a user may choose about how this machine makes an image."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """Choices that change how an image is made, not which one is asked for.

    `device` and `dtype` are found by themselves where they are `None`. `memory` is "auto" (a plan
    from what is free), "fast" (no plan: everything on the device, measures only once memory runs
    out) or "low" (every measure that costs little, from the start). `attention_slicing` `None`
    leaves it to the plan. `lenient` leaves out what a model cannot do; it is `None` where nobody is
    offered that. `batch_size` counts the
    images of one pass at most; `None` finds what the device gains most by.
    """

    device: str | None = None
    dtype: str | None = None
    memory: str = "auto"
    attention_slicing: bool | None = None
    clear_cache: bool = False
    trust_remote_code: bool = False
    safety_checker: bool = True
    offline: bool = False
    lenient: bool | None = False
    batch_size: int | None = 1
