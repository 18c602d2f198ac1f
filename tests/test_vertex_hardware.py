"""The table of Vertex AI's machines: what it says, and what is chosen and refused by it."""

import re

import pytest
from google.cloud import aiplatform_v1

from benchmarks import vertex_hardware
from t2i_cli.errors import InputError
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import catalog
from t2i_cli.vertex import hardware_table, machine_types, model_memory
from t2i_cli.vertex.hardware_table import AcceleratorFacts, MachineFacts
from t2i_cli.vertex.hardware_table import hardware_table as table
from t2i_cli.vertex.model_memory import ModelMemory

SD15, QWEN = catalog.MODELS["sd15"], catalog.MODELS["qwen-image"]


def test_every_accelerator_is_of_google_s_enum() -> None:
    google = set(aiplatform_v1.AcceleratorType.__members__)
    assert table().accelerators.keys() <= google
    assert {one for facts in table().machines.values() for one in facts.accelerators} <= google
    # What the table leaves out is no GPU, or one that no machine of it has.
    left = {name for name in google - table().accelerators.keys() if name.startswith("NVIDIA_")}
    assert left == {"NVIDIA_GB200"}


def test_a_machine_spec_is_google_s() -> None:
    for name, facts in table().machines.items():
        for accelerator, numbers in facts.accelerators.items():
            spec = machine_types.ReplicaHardware(
                machine=name, accelerator=accelerator, count=numbers[-1]
            ).spec()
            parsed = aiplatform_v1.MachineSpec.from_json(str(spec).replace("'", '"'))
            assert parsed.accelerator_type.name == accelerator
            assert parsed.accelerator_count == numbers[-1]


def test_the_table_is_what_its_script_writes() -> None:
    assert vertex_hardware.FILE.read_text(encoding="utf-8") == vertex_hardware.hardware_json()


def test_regions_and_prices_are_plausible() -> None:
    rows: list[MachineFacts | AcceleratorFacts] = [
        *table().machines.values(),
        *table().accelerators.values(),
    ]
    for facts in rows:
        for region in facts.regions or ():
            assert re.fullmatch(r"[a-z]+-[a-z]+\d+", region)
        if facts.usd_per_hour and facts.spot_usd_per_hour:
            assert facts.spot_usd_per_hour < facts.usd_per_hour
    # As Google's own page lists it (read on 7 October 2026), and as the table was before.
    assert table().machines["n1-standard-4"].usd_per_hour == 0.22
    assert table().machines["a2-highgpu-1g"].usd_per_hour == 4.22


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("L4", "NVIDIA_L4"),
        ("t4", "NVIDIA_TESLA_T4"),
        ("nvidia-tesla-t4", "NVIDIA_TESLA_T4"),
        ("Tesla V100", "NVIDIA_TESLA_V100"),
        ("A100", "NVIDIA_TESLA_A100"),
        ("a100-40gb", "NVIDIA_TESLA_A100"),
        ("A100-80GB", "NVIDIA_A100_80GB"),
        ("A100_80GB", "NVIDIA_A100_80GB"),
        ("H100", "NVIDIA_H100_80GB"),
        ("nvidia h100 80gb", "NVIDIA_H100_80GB"),
        ("H100-MEGA", "NVIDIA_H100_MEGA_80GB"),
        ("h200", "NVIDIA_H200_141GB"),
        ("RTX-PRO-6000", "NVIDIA_RTX_PRO_6000"),
        ("rtx6000", "NVIDIA_RTX_PRO_6000"),
        ("B200", "NVIDIA_B200"),
        *((name, name) for name, facts in table().accelerators.items() if not facts.ended),
    ],
)
def test_accelerators_as_people_spell_them(spelled: str, name: str) -> None:
    assert hardware_table.parse_accelerator(spelled) == (name, None)
    assert hardware_table.parse_accelerator(f"{spelled}:2") == (name, 2)
    chosen = machine_types.choose_hardware(None, spelled, SD15)
    assert chosen.accelerator == name
    assert chosen.count in table().machines[chosen.machine].accelerators[name]


@pytest.mark.parametrize(
    ("machine", "accelerator", "model", "sentence", "hint"),
    [
        (None, "foo", "sd15", "no machine .* accelerator foo", "There are T4, P4"),
        (None, "H1000", "sd15", "no machine", "Did you mean H100"),
        (None, "p100", "sd15", "Google ended the NVIDIA_TESLA_P100 on 2026-09-15", "T4 or L4"),
        ("n1-standard-8", "P100:1", "sd15", "ended .* 2026-09-15", "T4"),
        (None, "tpu-v5e", "sd15", "serves no TPU", "L4"),
        ("ct6e-standard-1t", None, "sd15", "serves no TPU", "g2"),
        ("n1-standard-8", "L4", "sd15", "n1-standard-8 takes no NVIDIA_L4", "g2-standard-4"),
        ("n1-standard-32", "t4:1", "sd15", "takes 2 or 4 NVIDIA_TESLA_T4, not 1", None),
        ("g2-standard-24", "l4:1", "sd15", "comes with 2 NVIDIA_L4", "g2-standard-4"),
        ("e2-standard-4", "t4", "sd15", "e2-standard-4 takes no", "n1-"),
        ("g2-standard-5", None, "sd15", "no machine type", "Did you mean g2-standard-"),
        ("a3-highgpu-3g", None, "sd15", "no machine type", "Did you mean a3-highgpu-"),
        (None, "v100:3", "sd15", "no machine with 3 NVIDIA_TESLA_V100", "n1-"),
        (None, "L4", "qwen-image", "qwen-image needs 65.3 GB", "a2-ultragpu-1g"),
        ("g2-standard-48", None, "qwen-image", "one NVIDIA_L4 has 24.2 GB", "a2-ultragpu-1g"),
        ("a2-highgpu-8g", None, "qwen-image", "one NVIDIA_TESLA_A100 has", "a2-ultragpu-1g"),
        (None, "P4", "sdxl", "sdxl needs", "g2-standard-4"),
    ],
)
def test_hardware_that_cannot_be(
    machine: str | None, accelerator: str | None, model: str, sentence: str, hint: str | None
) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        machine_types.choose_hardware(machine, accelerator, catalog.MODELS[model])
    assert (hint or "") in str(caught.value.hint)


@pytest.mark.parametrize("name", table().machines)
def test_every_machine_can_be_named(name: str) -> None:
    chosen = machine_types.choose_hardware(name, None, SD15)
    assert chosen.machine == name
    included = table().machines[name].included
    assert (chosen.count > 0) == included
    if name != "a4-highgpu-8g":  # whose price no source tells
        assert chosen.price(machine_types.BUILT_IN) == table().machines[name].usd_per_hour
    assert (chosen.spot_price() is not None) <= included


@pytest.mark.parametrize(
    ("region", "model", "machine"),
    [
        ("us-central1", "sd15", "g2-standard-4"),
        ("us-central1", "qwen-image", "a2-ultragpu-1g"),
        ("europe-west1", "qwen-image", "a3-highgpu-1g"),
        ("us-west3", "sd15", "a2-highgpu-1g"),
    ],
)
def test_the_region_decides_what_is_chosen(region: str, model: str, machine: str) -> None:
    chosen = machine_types.choose_hardware(None, None, catalog.MODELS[model], region=region)
    assert chosen.machine == machine


@pytest.mark.parametrize(
    ("machine", "accelerator", "model", "region", "near"),
    [
        ("g2-standard-4", None, "sd15", "europe-north1", "for that: europe-west1,"),
        (None, "H200", "sd15", "asia-east1", "for that: asia-south1,"),
        (None, "v100", "sd15", "us-west4", "for that: us-central1,"),
        ("n1-standard-4", "p4", "sd15", "europe-west1", "for that: europe-west4,"),
        (None, None, "qwen-image", "us-east1", "for a2-ultragpu-1g: us-central1,"),
        (None, None, "unknown/model", "me-west1", "for that: me-central2,"),
    ],
)
def test_a_region_without_it_names_the_nearest_that_have_it(
    machine: str | None, accelerator: str | None, model: str, region: str, near: str
) -> None:
    spec = catalog.MODELS.get(model, ModelSpec(name=model))
    with pytest.raises(InputError, match=f"^{region} has no ") as caught:
        machine_types.choose_hardware(machine, accelerator, spec, region=region)
    assert near in str(caught.value.hint)


def test_a_model_of_unknown_need_is_refused_nothing() -> None:
    unknown = ModelSpec(name="owner/name")
    assert machine_types.choose_hardware(None, None, unknown).text() == (
        "g2-standard-8 with 1 NVIDIA_L4"
    )
    assert machine_types.choose_hardware(None, "p4", unknown).accelerator == "NVIDIA_TESLA_P4"


def test_a_folder_s_weights_are_the_least_of_its_need() -> None:
    folder = catalog.MODELS["postcard"].folder
    assert folder is not None
    need = model_memory.folder_memory(folder)
    assert need is not None
    assert need.peak is None
    assert 0 < need.least == need.weights
    large = ModelMemory(weights=30 * 2**30, peak=None)
    spec = ModelSpec(name="mine")
    assert machine_types.choose_hardware(None, None, spec, memory=large).machine == "a2-highgpu-1g"
    with pytest.raises(InputError, match="mine needs 32.2 GB for its weights and an unknown"):
        machine_types.choose_hardware(None, "L4", spec, memory=large)


def test_every_model_of_the_catalogue_has_a_need() -> None:
    for name, spec in catalog.MODELS.items():
        if name == "postcard":
            continue
        need = model_memory.catalog_memory(spec)
        assert need is not None
        assert need.weights < need.least
    assert model_memory.catalog_memory(QWEN) is not None


def test_machines_and_regions_for_others() -> None:
    assert hardware_table.machines_with("NVIDIA_L4")[:2] == ["g2-standard-4", "g2-standard-8"]
    assert hardware_table.machines_with("NVIDIA_L4", "me-west1") == []
    assert hardware_table.machines_with("NVIDIA_GB200") == []
    assert "us-central1" in (hardware_table.regions_of("g2-standard-4", "NVIDIA_L4") or ())
    assert hardware_table.regions_of("n1-standard-4") is None
    assert hardware_table.regions_of("n1-standard-4", "NVIDIA_TESLA_T4") == (
        table().accelerators["NVIDIA_TESLA_T4"].regions
    )
    assert hardware_table.accelerator_memory("NVIDIA_L4") == int(24 * 2**30 * 0.94)
    assert hardware_table.accelerator_memory("TPU_V3") is None
