"""`t2i remote build` and `t2i remote package`: container images and model archives."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from t2i_cli.cli import options
from t2i_cli.cli.options import JsonOpt, QuietOpt
from t2i_cli.settings.options import ProjectOptions
from t2i_cli.terminal.console import console


def build(
    location: ProjectOptions,
    image: Annotated[
        str | None,
        typer.Option(
            "--image", help="Its name. [default: REGION-docker.pkg.dev/PROJECT/t2i/t2i:VERSION]"
        ),
    ] = None,
    builder: Annotated[
        str | None,
        typer.Option("--with", help="docker or cloud-build. [default: what is there]"),
    ] = None,
    bake: Annotated[
        str | None,
        typer.Option("--bake", help="Put this model's weights into the image.", metavar="MODEL"),
    ] = None,
    cuda: Annotated[
        str | None,
        typer.Option(
            "--cuda",
            help="PyTorch's build for this CUDA: cu126, cu129 (Blackwell's GPUs), or cu130, which "
            "needs a driver of 2025. [default: cu126]",
        ),
    ] = None,
    base_image: Annotated[
        str | None,
        typer.Option(
            "--base-image",
            help="Another image with Python to build on. [default: Python's own, slim]",
            metavar="IMAGE@sha256:…",
        ),
    ] = None,
    dry_run: options.DryRunOpt = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Build the image of t2i's server, and push it to where Vertex AI finds it."""
    console.configure(json=json, quiet=quiet)
    from t2i_cli.settings import store
    from t2i_cli.vertex import build as image_build

    image = store.resolve_setting("vertex_image", image) if image else None
    build_plan = image_build.plan_build(
        image,
        builder,
        bake,
        lambda: image_build.build_location(location),
        base_image=base_image,
        cuda=cuda,
    )
    if dry_run:
        for command in build_plan.commands(Path("CONTEXT")):
            console.result(" ".join(command))
        return
    image_build.run_build(build_plan)
    if json:
        console.result_json({"image": build_plan.image, "builder": build_plan.builder})
    else:
        console.result(build_plan.image)
        console.note(f"`t2i config set vertex_image {build_plan.image}` has deployments use it.")


def package(
    model: options.ModelOpt = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to put model.mar into.")
    ] = Path("t2i-torchserve"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model.mar that t2i packed.")
    ] = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Put a model and its handler into model.mar, for `deploy --serving torchserve`."""
    console.configure(json=json, quiet=quiet)
    from t2i_cli.terminal.progress import Progress
    from t2i_cli.vertex import containers
    from t2i_cli.vertex.torchserve import container, model_archive

    console.warn(container.WARNING)
    source = containers.find_source(model, "model-garden")
    # Before weights are downloaded for it.
    model_archive.check_archive_path(output, overwrite=overwrite)
    weights = containers.local_weights(source, dtype="float32")  # the handler loads no fp16 variant
    with Progress(console, 1) as progress:
        file = model_archive.write_archive(
            source,
            weights,
            output,
            partial(progress.transfer, "packing"),
            overwrite=overwrite,
        )
    if json:
        console.result_json({"file": str(file), "model": source.label_name})
    else:
        console.result(str(file))
