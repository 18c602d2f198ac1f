"""Whether a scheduler serves a pipeline, told from the source before anything is loaded."""

import subprocess
import sys

import pytest

from t2i_cli.errors import InputError
from t2i_cli.models import libraries, scheduler_support, schedulers
from tests import families
from tests.family_runs import PROMPTS, Family

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
NOISE = {"_class_name": "DDPMScheduler"}
LCM = {"_class_name": "LCMScheduler"}
_FLOW_MATCHING = {
    "ErnieImagePipeline",
    "Ideogram4Pipeline",
    "ZImageOmniPipeline",
    "ZImagePipeline",
}


@pytest.mark.parametrize(
    ("pipeline", "flow", "own", "refused", "reason"),
    [
        ("LongCatImagePipeline", True, FLOW, "heun", "does not support custom sigmas"),
        ("ErnieImagePipeline", True, FLOW, "dpm++2m", "set_timesteps takes no sigmas"),
        ("HiDreamImagePipeline", True, FLOW, "heun", "set_timesteps takes no mu"),
        ("OvisImagePipeline", True, FLOW, "dpm++2m", "settings of the model"),
        ("IFPipeline", False, NOISE, "euler", "config has no variance_type"),
        ("Kandinsky3Pipeline", False, NOISE, "unipc", "step takes no generator"),
        ("LatentConsistencyModelPipeline", False, LCM, "ddim", "original_inference_steps"),
        ("StableDiffusionSAGPipeline", False, NOISE, "euler", "no whole numbers"),
    ],
)
def test_a_scheduler_that_a_pipeline_does_not_take_is_refused_by_name(
    pipeline: str, flow: bool, own: dict[str, object], refused: str, reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        scheduler_support.check_scheduler_support(refused, pipeline, flow, own, "the model")
    fitting = scheduler_support.serving_scheduler_names(pipeline, flow, own)
    assert caught.value.field == "scheduler"
    assert fitting
    assert refused not in fitting
    assert caught.value.hint == f"There are {', '.join(fitting)}."


@pytest.mark.parametrize(
    ("pipeline", "flow", "own"),
    [
        ("StableDiffusionPipeline", False, {"_class_name": "PNDMScheduler"}),
        ("StableDiffusionXLPipeline", False, {"_class_name": "EulerDiscreteScheduler"}),
        ("StableDiffusion3Pipeline", True, FLOW),
        ("SanaPipeline", True, FLOW),
        ("AuraFlowPipeline", True, FLOW),
    ],
)
def test_all_schedulers_serve_a_pipeline_that_leaves_them_their_timesteps(
    pipeline: str, flow: bool, own: dict[str, object]
) -> None:
    names = scheduler_support.serving_scheduler_names(pipeline, flow, own)
    assert names == schedulers.usable_scheduler_names(flow)


def test_dynamic_shifting_decides_by_the_config_of_the_model() -> None:
    shifted = FLOW | {"use_dynamic_shifting": True}
    names = scheduler_support.serving_scheduler_names
    assert "dpm++2m" not in names("FluxPipeline", True, FLOW)
    assert "dpm++2m" in names("FluxPipeline", True, shifted)


def test_a_class_that_diffusers_does_not_have_is_left_to_the_run() -> None:
    scheduler_support.check_scheduler_support("heun", "OwnPipeline", True, FLOW, "the model")


def test_the_decision_imports_no_library() -> None:
    code = (
        "import sys; from t2i_cli.models import scheduler_support as s;"
        f"print(s.serving_scheduler_names('ChromaPipeline', True, {FLOW}));"
        "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("('euler'")


@pytest.mark.full
@pytest.mark.parametrize(
    ("pipeline", "name"),
    [(cls, name) for cls, known in scheduler_support.KNOWN_MISFITS.items() for name in known],
)
def test_each_known_misfit_fails_in_plain_diffusers(
    tmp_path_factory: pytest.TempPathFactory, pipeline: str, name: str
) -> None:
    import diffusers

    spec = schedulers.find_scheduler(name, pipeline in _FLOW_MATCHING)
    if not schedulers.is_installed(spec):
        pytest.skip(f"{spec.needs} is not installed.")
    folder = families.save(pipeline, tmp_path_factory.getbasetemp() / pipeline)
    with libraries.suppress_warnings():
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        side = Family(pipeline, folder).side
        config = schedulers.scheduler_config(spec, pipe.scheduler.config, latent=True)
        pipe.scheduler = getattr(diffusers, spec.cls).from_config(config)
        with pytest.raises((ValueError, IndexError, TypeError, AttributeError)):
            pipe(PROMPTS[0], num_inference_steps=4, height=side, width=side)
