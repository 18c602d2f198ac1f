"""The scheduler, its schedule and the extras of a request, checked before its model is loaded."""

from pathlib import Path

from t2i_cli.errors import InputError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import diffusers_folder, extras_support, resolution, scheduler_support
from t2i_cli.request import ResolvedRequest


def check_parameters(
    request: ResolvedRequest, spec: ModelSpec, folder: Path, *, trust_remote_code: bool
) -> None:
    """Raise InputError for a scheduler, a schedule or an extra that the model does not take.

    `folder` has the model's configs, which is all that is read.
    """
    own = diffusers_folder.component_config(folder, "scheduler")
    if request.extras:
        facts = resolution.pipeline_facts(folder, trust_remote_code=trust_remote_code)
        extras_support.check_extras(request, spec, facts)
    if request.scheduler is not None:
        if spec.flow is None:
            raise InputError(f"The scheduler of {spec.name} cannot be changed.", field="scheduler")
        scheduler_support.check_scheduler_support(
            request.scheduler, spec.pipeline, spec.flow, own, spec.name
        )
    if request.extras or request.schedule:
        scheduler_support.check_schedule(request, spec, own)
