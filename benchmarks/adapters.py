"""LoRAs: a switch against a load, what is left in memory, and fused weights against layers.

`python -m benchmarks.adapters [--model MODEL] [--lora FILE …]`; the model is on this machine. With
one LoRA, it is switched with itself at another weight and with none.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event as Flag

from t2i_cli.backend import Failure
from t2i_cli.backends.local import LocalBackend, LocalOptions, adapter_checks
from t2i_cli.backends.local.loading import LoadedPipeline
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.request import ResolvedRequest
from t2i_cli.request_adapters import parse_loras

SNOW = Path(__file__).parent.parent / "tests/adapters/snow.safetensors"


def seconds(call: Callable[[], object]) -> float:
    """The time that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def network_bytes(loaded: LoadedPipeline) -> int:
    """The bytes of all weights of the pipeline's networks."""
    import torch

    gc.collect()
    networks = [n for n in loaded.pipe.components.values() if isinstance(n, torch.nn.Module)]
    return sum(weight.nbytes for network in networks for weight in network.state_dict().values())


def measure(model: str, files: Sequence[str], repeats: int) -> dict[str, float]:
    """The figures, in seconds and bytes."""
    options = LocalOptions()
    backend = LocalBackend(options)

    def request(*loras: str) -> ResolvedRequest:
        values = {"prompt": "a red house on green hills", "model": model, "seed": 1, "steps": 10}
        asked = build_request(values | ({"loras": parse_loras(list(loras))} if loras else {}))
        return resolve_request(asked, backend.describe(asked))

    def image(asked: ResolvedRequest) -> None:
        [outcome] = backend.run([asked], lambda _: None, Flag())
        if isinstance(outcome, Failure):
            raise outcome.error

    plain, sets = request(), [request(f"{file}:{weight}") for file in files for weight in (1, 0.5)]
    image(plain)
    backend.close()
    found = {"load": seconds(lambda: backend.load(plain, lambda _: None))}
    loaded = backend._loaded  # noqa: SLF001
    if loaded is None:
        raise SystemExit("the model is not loaded")
    found["bytes of the base"] = network_bytes(loaded)
    target = backend._target(plain)  # noqa: SLF001
    read = [adapter_checks.fetch_adapters(one, target, options, lambda _: None) for one in sets]

    def switch(number: int) -> float:
        return seconds(lambda: loaded.adapters.activate(read[number % len(read)]))

    found["first LoRA"] = switch(0)
    found["bytes with it"] = network_bytes(loaded)
    found["switch"] = statistics.median(switch(number) for number in range(1, repeats + 1))
    found["image with layers"] = statistics.median(
        seconds(lambda: image(sets[0])) for _ in range(repeats)
    )
    names = [each.name for each in loaded.adapters._loras.values()][:1]  # noqa: SLF001
    found["fuse"] = seconds(lambda: loaded.pipe.fuse_lora(adapter_names=names))
    found["image fused"] = statistics.median(
        seconds(lambda: image(sets[0])) for _ in range(repeats)
    )
    found["unfuse"] = seconds(loaded.pipe.unfuse_lora)
    found["back to the base"] = seconds(lambda: loaded.adapters.activate([]))
    found["bytes afterwards"] = network_bytes(loaded)
    found["image without"] = statistics.median(
        seconds(lambda: image(plain)) for _ in range(repeats)
    )
    backend.close()
    return found


def main() -> None:
    """Print the figures, and the ratios that are promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="postcard")
    parser.add_argument("--lora", action="append", help="a file; may be repeated")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    found = measure(options.model, options.lora or [str(SNOW)], options.repeats)
    for name, value in found.items():
        print(f"{name:20}{value:12,.0f}" if "bytes" in name else f"{name:20}{value:12.4f} s")
    print(f"switch / load       {found['switch'] / found['load']:12.3f} (wanted: at most 0.15)")
    print(f"first / load        {found['first LoRA'] / found['load']:12.3f}")
    print(f"fused / layers      {found['image fused'] / found['image with layers']:12.3f}")
    same = found["bytes of the base"] == found["bytes afterwards"]
    print(f"memory as before    {'yes' if same else 'NO':>12}")


if __name__ == "__main__":
    main()
