"""Where settings come from, and what is refused."""

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from t2i_cli.errors import InputError, StorageError
from t2i_cli.settings import schema, store


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings file of this test, not there yet; no variable is set."""
    file = tmp_path / "folder" / "t2i.toml"
    monkeypatch.setenv("T2I_CONFIG", str(file))
    for setting in store.SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)
    return file


def write(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)


def test_the_environment_wins_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.find_setting("model") is None
    write(file, 'model = "sdxl"')
    assert store.find_setting("model") == store.SettingValue("sdxl", str(file))
    monkeypatch.setenv("T2I_MODEL", "postcard")
    assert store.find_setting("model") == store.SettingValue("postcard", "T2I_MODEL")
    monkeypatch.setenv("T2I_MODEL", "")
    assert store.get_setting("model") == "sdxl"


@pytest.mark.parametrize(
    ("written", "usual"), [("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")]
)
def test_other_spellings_of_a_value_are_kept_as_the_usual_one(
    file: Path, monkeypatch: pytest.MonkeyPatch, written: str, usual: str
) -> None:
    assert store.resolve_setting("dtype", written) == usual
    assert store.set_setting("dtype", written) == usual
    assert f'dtype = "{usual}"' in file.read_text()
    file.write_text(f'dtype = "{written}"\n')
    assert store.get_setting("dtype") == usual
    monkeypatch.setenv("T2I_DTYPE", written)
    assert store.get_setting("dtype") == usual


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("model", "stabilityai/sdxl-turbo", "  "),
        ("device", "cuda:1", "gpu"),
        ("device", "cpu", "cpu:0"),
        ("dtype", "bfloat16", "fp8"),
        ("memory", "low", "Low"),
        ("format", "webp", "gif"),
        ("output", "out/{seed}.{ext}", "a\x1bb"),
    ],
)
def test_values_are_checked_wherever_they_come_from(
    file: Path, monkeypatch: pytest.MonkeyPatch, key: str, good: str, bad: str
) -> None:
    store.set_setting(key, good)
    assert store.get_setting(key) == good
    before = file.read_text()
    with pytest.raises(InputError, match=f"^{key} must be .*, not "):
        store.set_setting(key, bad)
    assert file.read_text() == before
    variable = store.setting_named(key).variable
    monkeypatch.setenv(variable, bad)
    with pytest.raises(InputError, match=f"^{variable} must be "):
        store.get_setting(key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('modell = "sd15"', "There is no setting modell"),
        ("steps = 20", "There is no setting steps"),
        ("model = 3", "model must be an alias.*, not 3"),
        ('memory = "big"', "memory must be auto, fast or low, not 'big'"),
        ('hf_token = "hf_abc"', "t2i keeps no token"),
        ("model\n", "not valid TOML.*line 1"),
        ('model = "sd15"\nmodel = "sdxl"', "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(file: Path, text: str, message: str) -> None:
    write(file, text)
    with pytest.raises(InputError, match=message) as caught:
        store.get_setting("format")
    assert str(file) in caught.value.message
    assert "hf_abc" not in f"{caught.value.message}{caught.value.hint}"


def test_a_file_that_is_not_text_is_refused(file: Path) -> None:
    write(file, "")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        store.get_setting("model")


def test_an_option_wins_and_is_checked_alike(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_MEMORY", "low")
    assert store.resolve_setting("memory", None) == "low"
    assert store.resolve_setting("memory", "fast") == "fast"
    with pytest.raises(InputError, match="^--memory must be auto, fast or low, not 'big'"):
        store.resolve_setting("memory", "big")


def test_unknown_keys_list_the_valid_ones(file: Path) -> None:
    with pytest.raises(InputError) as caught:
        store.get_setting("modle")
    assert str(caught.value.hint).endswith(f"There are {', '.join(store.SETTINGS)}.")


@pytest.mark.parametrize("key", ["hf_token", "token", "HF_TOKEN", "api-key", "password"])
def test_tokens_are_not_settings(file: Path, key: str) -> None:
    with pytest.raises(InputError, match="keeps no token") as caught:
        store.set_setting(key, "hf_abc")
    assert "t2i login" in str(caught.value.hint)
    assert "hf_abc" not in caught.value.message
    assert not file.exists()


def test_writing_keeps_comments_and_the_rest(file: Path) -> None:
    write(file, '# mine\nmodel = "sd15"  # the small one\n\nmemory = "low"\n')
    store.set_setting("model", "sdxl")
    store.set_setting("format", "webp")
    assert store.unset_setting("memory")
    assert not store.unset_setting("memory")
    text = file.read_text()
    assert text.startswith('# mine\nmodel = "sdxl"  # the small one\n')
    assert store.read_settings() == {"model": "sdxl", "format": "webp"}


def test_a_wrong_setting_can_be_taken_out(file: Path) -> None:
    write(file, 'modell = "sd15"\nmemory = "big"\n')
    store.unset_setting("modell")
    store.set_setting("memory", "low")
    assert store.read_settings() == {"memory": "low"}
    with pytest.raises(InputError, match="no setting modell"):
        store.unset_setting("modell")


def test_the_file_is_the_owners_only(file: Path) -> None:
    store.set_setting("model", "sd15")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    store.set_setting("model", "sdxl")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["t2i.toml"]


def test_a_linked_file_stays_a_link(file: Path, tmp_path: Path) -> None:
    kept = tmp_path / "dotfiles.toml"
    kept.write_text("# kept\n")
    file.parent.mkdir()
    file.symlink_to(kept)
    store.set_setting("model", "sd15")
    assert file.is_symlink()
    assert kept.read_text() == '# kept\nmodel = "sd15"\n'


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "file" / "t2i.toml"))
    with pytest.raises(StorageError, match="Cannot"):
        store.set_setting("model", "sd15")


def test_secret_settings_are_masked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = replace(store.setting_named("format"), key="pin", variable="T2I_PIN", secret=True)
    monkeypatch.setitem(store.SETTINGS, "pin", secret)
    assert store.redact("pin", "1234") == "********"
    assert store.redact("format", "png") == "png"
    with pytest.raises(InputError) as caught:
        store.set_setting("pin", "1234")
    assert "1234" not in caught.value.message


def test_the_platform_has_a_place_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("T2I_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert store.settings_path().parts[-2:] == ("t2i", "config.toml")


def test_reading_loads_nothing_heavy(file: Path) -> None:
    write(file, 'model = "sdxl"')
    code = (
        "import sys; from t2i_cli.settings import store\n"
        "assert store.get_setting('model') == 'sdxl'\n"
        "print(sorted({'tomlkit', 'typer', 'torch', 'huggingface_hub'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert run.stdout == "[]\n"


@pytest.mark.parametrize("imported", [False, True])
def test_go_offline_acts_before_and_after_the_import(imported: bool) -> None:
    code = (
        ("import huggingface_hub.constants;" if imported else "")
        + "from t2i_cli.settings import store; store.set_offline();"
        "from huggingface_hub import HfApi, errors\n"
        "try: HfApi().model_info('a/b')\n"
        "except errors.OfflineModeIsEnabled: print('offline')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert run.stdout == "offline\n"


def test_choices_are_listed_as_in_a_sentence() -> None:
    assert schema.join_choices(["a", "b", "c"]) == "a, b or c"


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://example.org/v1", True),
        ("http://localhost:8000", True),
        ("http://127.0.0.1", True),
        ("http://[::1]:80/", True),
        ("http://example.org", False),
        ("http://10.0.0.1", False),
        ("ftp://localhost", False),
        ("https://", False),
        ("https://ann@example.org", False),
        ("https://:secret@example.org", False),
        ("https://example.org?a", False),
        ("https://example.org#a", False),
        ("https://example.org:port", False),
        ("http://[::1", False),
    ],
)
def test_a_token_goes_out_safely_or_not_at_all(url: str, safe: bool) -> None:
    assert schema.is_safe_url(url) is safe


def test_an_option_is_named_without_its_backend(file: Path) -> None:
    for key, flag in [("http_api_key", "--api-key"), ("vertex_region", "--region")]:
        with pytest.raises(InputError) as caught:
            store.resolve_setting(key, "not this one")
        assert caught.value.message.startswith(f"{flag} must be ")
        assert caught.value.field == key
    assert store.resolve_setting("model", None) is None


def test_a_wrong_file_says_what_is_wrong_and_how_to_take_it_out(file: Path) -> None:
    write(file, 'memory = "much"')
    with pytest.raises(InputError) as caught:
        store.read_settings()
    assert caught.value.message == f"{file}: memory must be auto, fast or low, not 'much'."
    assert caught.value.hint == "`t2i config unset memory` takes it out."
    write(file, "colour = 1")
    with pytest.raises(InputError) as caught:
        store.read_settings()
    assert caught.value.message == f"{file}: There is no setting colour."
    assert caught.value.hint == (
        f"There are {', '.join(store.SETTINGS)}. `t2i config unset colour` takes it out."
    )
    write(file, "not TOML")
    with pytest.raises(InputError, match=f"^{file} is not valid TOML: "):
        store.unset_setting("model")


def test_a_setting_is_on_the_disk_in_a_folder_made_for_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2I_CONFIG", str(tmp_path / "a" / "b" / "t2i.toml"))
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    store.set_setting("output", "ö.png")
    assert synced
    assert store.get_setting("output") == "ö.png"


def test_a_place_that_cannot_be_written_is_named_with_the_reason(file: Path) -> None:
    file.parent.write_text("a file")
    with pytest.raises(StorageError) as caught:
        store.set_setting("model", "sd15")
    assert caught.value.message.startswith(f"Cannot write {file}: ")
    assert "exists" in caught.value.message or "directory" in caught.value.message


def test_going_offline_is_told_to_what_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    imported = SimpleNamespace(HF_HUB_OFFLINE=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", imported)
    store.set_offline()
    assert (os.environ["HF_HUB_OFFLINE"], imported.HF_HUB_OFFLINE) == ("1", True)
