"""`t2i doctor` as a process, and its checks."""

import json
import sys
import time
from pathlib import Path

import pytest

from t2i_cli import diagnostics, postcard
from tests.conftest import T2I
from tests.fakes.hub import FakeHub
from tests.fakes.oauth import ACCOUNT
from tests.fakes.vertex import FakeVertex


def examined(t2i: T2I, code: int, env: dict[str, str]) -> dict[str, dict[str, object]]:
    done = t2i("doctor", "--json", env=env)
    assert done.returncode == code, done.stdout
    assert done.stderr == ""
    return {record["name"]: record for record in map(json.loads, done.stdout.splitlines())}


def test_all_is_well(t2i: T2I, hub: FakeHub, vertex: FakeVertex) -> None:
    hub.users["hf_good"] = "ann"
    env = hub.environment | vertex.environment
    found = examined(t2i, 0, env | {"HF_TOKEN": "hf_good", "T2I_MODEL": "postcard"})
    assert {record["status"] for name, record in found.items() if name != "disk"} == {"ok"}
    assert f"Python {sys.version.split()[0]}" in str(found["t2i"]["detail"])
    assert "torch " in str(found["libraries"]["detail"])
    assert "cpu (CPU)" in str(found["device"]["detail"])
    assert "ann is logged in by HF_TOKEN" in str(found["hub"]["detail"])
    assert ACCOUNT in str(found["google"]["detail"])
    assert "may: predict, deploy, upload, remove" in str(found["google"]["detail"])
    assert "postcard, the default, is on this machine" in str(found["model"]["detail"])


def test_without_network_and_accounts_a_picture_can_be_made(t2i: T2I) -> None:
    start = time.monotonic()
    done = t2i("doctor")
    assert done.returncode == 0
    assert time.monotonic() - start < 30
    assert "note  hub: The Hub cannot be reached." in done.stdout
    assert "note  google: There are no Google credentials." in done.stdout
    assert "note  model: sd15, the default, is not downloaded (5.5 GB)" in done.stdout
    assert "t2i models pull sd15" in done.stdout


def test_a_slow_hub_is_a_note(t2i: T2I, hub: FakeHub) -> None:
    hub.delay = 5
    found = examined(t2i, 0, hub.environment | {"HF_HUB_DOWNLOAD_TIMEOUT": "1"})
    assert found["hub"]["status"] == "note"
    assert "did not answer in time" in str(found["hub"]["detail"])


def test_what_never_answers_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "NETWORK_TIMEOUT", 0.2)
    for name in ("_hub", "_google"):
        monkeypatch.setattr(diagnostics, name, lambda: time.sleep(30))
    start = time.monotonic()
    found = {check.name: check for check in diagnostics.run_diagnostics()}
    assert time.monotonic() - start < 15
    assert found["hub"].detail == found["google"].detail == "no answer in time"
    assert found["hub"].status == "note"


def test_a_wrong_config_is_a_problem(t2i: T2I, home: Path) -> None:
    (home / "t2i.toml").write_text("steps = 3")
    found = examined(t2i, 2, {})
    assert found["config"]["status"] == "problem"
    assert "There is no setting steps" in str(found["config"]["detail"])


def test_a_bad_token_is_a_note(t2i: T2I, hub: FakeHub) -> None:
    found = examined(t2i, 0, hub.environment | {"HF_TOKEN": "hf_badbad"})
    assert found["hub"]["status"] == "note"
    assert "refuses the token from HF_TOKEN" in str(found["hub"]["detail"])
    assert "badbad" not in json.dumps(found)


@pytest.mark.parametrize(("has", "told"), [({"amx_bf16": True}, "AMX"), ({"avx2": True}, None)])
def test_a_processor_that_computes_in_bfloat16_is_told(
    has: dict[str, bool], told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    found = {check.name: check for check in diagnostics._devices()}
    assert ("dtype" in found) == (told is not None)
    if told:
        assert f"has {told}: --dtype bfloat16 is faster" in found["dtype"].detail


def test_a_broken_installation_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(postcard, "FOLDER", tmp_path)
    monkeypatch.setattr(diagnostics, "_LIBRARIES", ("typer", "not-a-library"))
    monkeypatch.setitem(sys.modules, "torch", None)
    found = {check.name: check for check in diagnostics.run_diagnostics()}
    for name in ("libraries", "device", "postcard"):
        assert found[name].status == "problem"
        assert found[name].exit_code == 9
        assert found[name].fix
    assert "not-a-library" in found["libraries"].detail
