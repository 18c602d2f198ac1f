"""`t2i remote deploy` and `t2i remote run`: an endpoint for a while, or for one command."""

from typing import Annotated

import typer

from t2i_cli.cli import options
from t2i_cli.console import console
from t2i_cli.vertex import DEFAULT_TTL

ModelOpt = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Alias, repository on the Hub, folder, or gs://... [default: sd15]"
    ),
]
MachineOpt = Annotated[
    str | None, typer.Option("--machine-type", help="As g2-standard-4. [default: by the model]")
]
AcceleratorOpt = Annotated[
    str | None, typer.Option("--accelerator", help="As T4 or NVIDIA_TESLA_T4:1, or none.")
]
MinReplicasOpt = Annotated[int, typer.Option("--min-replicas", help="Always running.")]
MaxReplicasOpt = Annotated[int, typer.Option("--max-replicas", help="Running under load.")]
TtlOpt = Annotated[str, typer.Option("--ttl", help="How long it may live, as 90m or 2h.")]
MaxCostOpt = Annotated[
    float | None,
    typer.Option("--max-cost", help="Refuse if it could cost more USD until its TTL."),
]
ScaleToZeroOpt = Annotated[
    str | None,
    typer.Option("--scale-to-zero", help="Stop all replicas after so long idle, as 15m (Preview)."),
]
ServingOpt = Annotated[
    str | None,
    typer.Option(
        "--serving",
        help="t2i, model-garden or torchserve. [default: t2i with an image, else model-garden]",
    ),
]
ImageOpt = Annotated[
    str | None, typer.Option("--image", help="The image of t2i's server, of `t2i remote build`.")
]
BucketOpt = Annotated[
    str | None,
    typer.Option("--bucket", help="For weights from here. [default: t2i-PROJECT-REGION]"),
]
ServiceAccountOpt = Annotated[
    str | None, typer.Option("--service-account", help="The container runs as this one.")
]
SchedulerAccountOpt = Annotated[
    str | None,
    typer.Option(
        "--scheduler-account",
        help="Have a Cloud Scheduler job undeploy after the TTL, as this service account.",
    ),
]
NameOpt = Annotated[
    str | None, typer.Option("--name", help="Tells it from others. [default: the model's]")
]
DryRunOpt = Annotated[bool, typer.Option("--dry-run", help="Print the plan; change nothing.")]
CommandArg = Annotated[
    list[str], typer.Argument(metavar="COMMAND...", help="What to run, after --.")
]


def deploy(
    model: ModelOpt = None,
    machine_type: MachineOpt = None,
    accelerator: AcceleratorOpt = None,
    min_replicas: MinReplicasOpt = 1,
    max_replicas: MaxReplicasOpt = 1,
    ttl: TtlOpt = DEFAULT_TTL,
    max_cost: MaxCostOpt = None,
    scale_to_zero: ScaleToZeroOpt = None,
    serving: ServingOpt = None,
    image: ImageOpt = None,
    bucket: BucketOpt = None,
    service_account: ServiceAccountOpt = None,
    scheduler_account: SchedulerAccountOpt = None,
    name: NameOpt = None,
    project: options.ProjectOpt = None,
    region: options.RegionOpt = None,
    api_endpoint: options.ApiEndpointOpt = None,
    yes: options.YesOpt = False,
    dry_run: DryRunOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
) -> None:
    """Deploy a model to an endpoint of its own; run it again to go on after a failure."""
    console.configure(json=json, quiet=quiet)
    from t2i_cli.vertex import lifecycle, plan
    from t2i_cli.vertex.plan import DeploymentSpec

    wanted = DeploymentSpec(
        model=model,
        machine_type=machine_type,
        accelerator=accelerator,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        ttl=ttl,
        max_cost=max_cost,
        scale_to_zero=scale_to_zero,
        serving=serving,
        image=image,
        bucket=bucket,
        service_account=service_account,
        scheduler_account=scheduler_account,
        name=name,
    )
    with lifecycle.connect(project=project, region=region, api_endpoint=api_endpoint) as cloud:
        if dry_run:
            settled = plan.plan_deployment(wanted, cloud.rest, cloud.account)
            if json:
                console.result_json(settled.to_json())
            else:
                console.result(settled.text())
            return
        settled = lifecycle.confirm_plan(wanted, cloud, console, yes=yes, offer=True)
        found = lifecycle.deploy_plan(settled, cloud, console)
    if json:
        console.result_json({"endpoint": found.name, "dns": found.dns} | settled.to_json())
    else:
        console.result(found.name)


def run(
    command: CommandArg,
    model: ModelOpt = None,
    machine_type: MachineOpt = None,
    accelerator: AcceleratorOpt = None,
    min_replicas: MinReplicasOpt = 1,
    max_replicas: MaxReplicasOpt = 1,
    ttl: TtlOpt = DEFAULT_TTL,
    max_cost: MaxCostOpt = None,
    scale_to_zero: ScaleToZeroOpt = None,
    serving: ServingOpt = None,
    image: ImageOpt = None,
    bucket: BucketOpt = None,
    service_account: ServiceAccountOpt = None,
    scheduler_account: SchedulerAccountOpt = None,
    name: NameOpt = None,
    project: options.ProjectOpt = None,
    region: options.RegionOpt = None,
    api_endpoint: options.ApiEndpointOpt = None,
    yes: options.YesOpt = False,
    quiet: options.QuietOpt = False,
) -> None:
    """Deploy, run a command with the endpoint in its environment, take it down whatever happens."""
    console.configure(quiet=quiet)
    from t2i_cli.vertex import lifecycle
    from t2i_cli.vertex.plan import DeploymentSpec

    wanted = DeploymentSpec(
        model=model,
        machine_type=machine_type,
        accelerator=accelerator,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        ttl=ttl,
        max_cost=max_cost,
        scale_to_zero=scale_to_zero,
        serving=serving,
        image=image,
        bucket=bucket,
        service_account=service_account,
        scheduler_account=scheduler_account,
        name=name,
    )
    with lifecycle.connect(project=project, region=region, api_endpoint=api_endpoint) as cloud:
        code = lifecycle.run_command(wanted, cloud, console, command, yes=yes)
    raise typer.Exit(code)
