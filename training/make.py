"""Makes the embedded model from nothing: `python -m training.make`; started again, it goes on.

Stages, in order: the autoencoder, the text encoder on captions alone, the UNet with the text
encoder, the export into the package, and the grading of what was exported. A stage that has had its
time is passed over. With `--further` the exported model itself is the start, and its autoencoder
stays as it is.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from training import card, diffusion, grade, pretrain_text_encoder, vae
from training.export import export
from training.files import MODEL, ROOT, RUNS, load_state
from training.tokenizer import build
from training.untyped import AutoencoderKL, UNet2DConditionModel, Untyped

STAGES: Final = ("vae", "text", "unet", "export", "grade")
VAE: Final = RUNS / "vae.pt"
VAE_ROUNDS: Final = (RUNS / "vae-first.pt", RUNS / "vae-second.pt", VAE)
TEXT: Final = RUNS / "text.pt"
UNET: Final = RUNS / "unet.pt"
REPORT: Final = RUNS / "grade.json"


def make_vae(options: argparse.Namespace, device: torch.device) -> None:
    """Train the autoencoder in its rounds."""
    if options.further:
        return
    before: Path | None = None
    for part, checkpoint in zip(vae.ROUNDS, VAE_ROUNDS, strict=True):
        minutes, seed = part.minutes * options.pace, part.seed + options.seed
        vae.train(checkpoint, replace(part, minutes=minutes, seed=seed), device, start=before)
        before = checkpoint


def make_text(options: argparse.Namespace, device: torch.device) -> None:
    """Teach the text encoder, and the UNet's pooling of its output, to read captions."""
    if options.further or TEXT.exists():
        return
    tokenizer = build()
    text_encoder: Untyped = diffusion.new_text_encoder(tokenizer)
    text_encoder = text_encoder.to(device)
    pooling = diffusion.new_unet().add_embedding.to(device)
    settings = pretrain_text_encoder.Options(
        minutes=pretrain_text_encoder.Options.minutes * options.pace, seed=options.seed
    )
    pretrain_text_encoder.train(text_encoder, pooling, tokenizer, TEXT, settings)


def make_unet(options: argparse.Namespace, device: torch.device) -> None:
    """Train the UNet and the text encoder on the autoencoder's latents."""
    if options.workers > 1:
        torch.set_num_threads(1)
    helpers = [] if options.worker else [_helper(options, n) for n in range(1, options.workers)]
    encoder, tokenizer, start = _parts(options)
    if not options.further and (read := load_state(TEXT)) is not None:
        start["text_encoder"].load_state_dict(read["text_encoder"])
        start["unet"].add_embedding.load_state_dict(read["pooling"])
    encoder = encoder.to(device, memory_format=torch.channels_last)
    settings = diffusion.Options(
        minutes=options.unet_minutes * options.pace,
        seed=options.seed,
        worker=options.worker,
        workers=options.workers,
    )
    try:
        diffusion.train(encoder, tokenizer, UNET, settings, device, start)
    finally:
        for helper in helpers:
            helper.terminate()
            helper.wait()


def _parts(options: argparse.Namespace) -> tuple[Untyped, CLIPTokenizer, Untyped]:
    """Autoencoder, tokenizer, and text encoder and UNet: new, or with --further the exported."""
    parts: dict[str, Untyped]
    if not options.further:
        tokenizer = build()
        encoder = vae.new_vae() if options.untrained else vae.load_average(VAE)
        parts = {
            "text_encoder": diffusion.new_text_encoder(tokenizer),
            "unet": diffusion.new_unet(),
        }
        return encoder, tokenizer, torch.nn.ModuleDict(parts)
    folder: Path = options.out
    encoder = AutoencoderKL.from_pretrained(folder / "vae").eval().requires_grad_(False)
    parts = {
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet"),
    }
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    return encoder, tokenizer, torch.nn.ModuleDict(parts)


def _helper(options: argparse.Namespace, number: int) -> subprocess.Popen[bytes]:
    """Another process that trains the UNet beside this one."""
    given = {"unet-minutes": options.unet_minutes, "pace": options.pace, "seed": options.seed}
    numbered = given | {"workers": options.workers, "worker": number}
    arguments = [f"--{name}={value}" for name, value in numbered.items()]
    command = [sys.executable, "-m", "training.make", "unet", *arguments]
    if options.further:
        command += ["--further", f"--out={options.out.resolve()}"]
    return subprocess.Popen(command, cwd=ROOT)  # noqa: S603 (this very module)


def make_export(options: argparse.Namespace, _device: torch.device) -> None:
    """Write the averaged weights into the package, with the figures of the last grading."""
    decoder, tokenizer, parts = _parts(options)
    steps = 0
    if not options.untrained:
        state = load_state(UNET)
        if state is None:
            raise FileNotFoundError(UNET)
        parts.load_state_dict(state["model" if options.raw else "average"])
        steps = state["step"]
    words = card.text(REPORT, steps)
    export(decoder, parts["text_encoder"], parts["unet"], tokenizer, words, options.out)


def make_grade(options: argparse.Namespace, _device: torch.device) -> None:
    """Grade the exported model, and put the figures into its card."""
    state = load_state(UNET)
    grade.main(["--model", str(options.out), "--json", str(REPORT)])
    words = card.text(REPORT, state["step"] if state else 0)
    (options.out / "README.md").write_text(words, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.make", description=__doc__)
    parser.add_argument("stages", nargs="*", help=f"some of {', '.join(STAGES)}; default: all")
    parser.add_argument("--unet-minutes", type=float, default=diffusion.MINUTES)
    parser.add_argument("--workers", type=int, default=2, help="processes that train the UNet")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--pace", type=float, default=1.0, help="times all training minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=MODEL, help="folder of the exported model")
    parser.add_argument("--further", action="store_true", help="train the exported model further")
    parser.add_argument("--raw", action="store_true", help="export weights that are not averaged")
    parser.add_argument("--untrained", action="store_true", help="export random weights")
    options = parser.parse_args(arguments)
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    makers: dict[str, Callable[[argparse.Namespace, torch.device], None]] = {
        "vae": make_vae,
        "text": make_text,
        "unet": make_unet,
        "export": make_export,
        "grade": make_grade,
    }
    if device.type == "cuda":
        options.workers = 1  # one process fills a GPU
    torch.manual_seed(options.seed)
    for stage in options.stages or STAGES:
        sys.stdout.write(f"== {stage}\n")
        makers[stage](options, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
