"""Options of the local backend."""

from dataclasses import dataclass
from typing import Literal

CompileMode = Literal["auto", "off", "on"]


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """Options that change how images are generated, not what they show.

    `device` and `dtype` are chosen automatically if `None`. `memory` is "auto" (measures planned
    from the free memory), "fast" (everything on the device, measures only once memory runs out) or
    "low" (every cheap measure from the start). `attention_slicing` `None` leaves it to the plan.
    `lenient` drops what a model does not support; `None` is for a command without that option.
    `batch_size` is the maximum number of images per batch; `None` measures which size is fastest.
    `strict` computes so that the same seed gives the same bits on each machine of a kind.
    `lora_dir` is the folder whose LoRAs and embeddings have names.
    `compile` is "auto" (compile the denoiser where the work left repays it), "off" or "on".
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
    strict: bool = False
    compile: CompileMode = "auto"
    lora_dir: str | None = None
