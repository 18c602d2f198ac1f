"""Paths that a user names: `~`, and what cannot be examined, as input, output, model, setting."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2i_cli.batch import manifest
from t2i_cli.errors import InputError, ModelError, T2IError
from t2i_cli.files import user_paths
from t2i_cli.files.input_files import open_input
from t2i_cli.models import catalog, diffusers_folder, sources
from t2i_cli.output.image_writer import check_folder
from t2i_cli.settings import store
from t2i_cli.vertex import machine_types
from tests.conftest import T2I

LONG = "n" * 300

IN_ONE_PROCESS = """
import contextlib, io, json, os, sys
from t2i_cli.backends.local import LocalBackend
from t2i_cli.cli import main as cli
LocalBackend.check = lambda self, request: None
LocalBackend.estimate = lambda self, request: {}
for setting, arguments in json.load(sys.stdin):
    os.environ["T2I_CONFIG"] = setting or "none.toml"
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = cli._run(arguments)
    print(json.dumps([code, errors.getvalue()]), file=sys.__stdout__)
"""
"""Runs `t2i` with each list of arguments, and what T2I_CONFIG is."""


def without_overrides() -> None:
    """Take from the process to come what lets root read the files of others (prctl(2))."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with paths of every kind that cannot be examined."""
    locked = tmp_path / "locked"
    (locked / "model").mkdir(parents=True)
    (locked / "model" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (locked / "p.txt").write_text("a red star\n")
    (tmp_path / "p.txt").write_text("a red star\n")
    (tmp_path / "plain").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "linked").symlink_to("locked")
    os.mkfifo(tmp_path / "pipe")
    if os.getuid() == 0:
        os.chown(locked, 65534, 65534)
    locked.chmod(0o700 if os.getuid() == 0 else 0)
    return tmp_path


PLACES = (
    *("locked/p.txt", "locked/o.png", "linked/x", LONG, f"{LONG}/x", "dangling", "loop", "loop/x"),
    *("pipe", "plain/x", "~nouser/x", "/dev/zero", "."),
)


def test_what_cannot_be_examined_is_one_sentence_wherever_it_stands(
    odd: Path, t2i_env: dict[str, str]
) -> None:
    lines: list[tuple[str, list[str]]] = []
    for place in PLACES:
        lines += [
            ("", ["inspect", place]),
            ("", ["batch", place, "--input-format", "txt", "-m", "postcard", "--dry-run"]),
            ("", ["generate", "x", "-m", place if "/" in place else f"./{place}", "--offline"]),
            ("", ["models", "show", place if "/" in place else f"./{place}"]),
            ("", ["models", "path", f"./{place}" if place[0] not in "/~" else place, "--json"]),
            ("", ["serve", "-m", "postcard", "--api-key-file", place]),
            ("", ["batch", "--merge", place]),
        ]
        if place != ".":
            lines.append(("", ["batch", "p.txt", "-m", "postcard", "--dry-run", "-o", place]))
            lines.append(("", ["batch", "p.txt", "-m", "postcard", "-o", place]))
        if place not in {"dangling", LONG, f"{LONG}/x"}:
            lines.append(("", ["generate", "x", "-m", "postcard", "--dry-run", f"-o{place}/a.png"]))
        if place != "dangling":  # as a file that is not there
            lines += [(place, ["config", "list"]), (place, ["config", "set", "model", "sdxl"])]
    lines = [line for line in lines if line[1][-1] != "-o./a.png"]
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS],
        input=json.dumps(lines),
        env=t2i_env,
        cwd=odd,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=without_overrides,
        timeout=120,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(answers) == len(lines), done.stderr
    assert sum("Permission denied" in errors for _, errors in answers) > 10
    for (setting, arguments), (code, errors) in zip(lines, answers, strict=True):
        told = (setting[:20], arguments, errors)
        model = arguments[0] == "models" or "--offline" in arguments
        assert code in ({2, 9, 11} if model else {2, 11}), told
        assert "Traceback" not in errors and "network" not in errors, told
        sentence, *hint = errors.splitlines()
        assert sentence.startswith(("error: ", '{"error"')), told
        assert len(hint) < 2, told


def test_a_leading_tilde_is_a_home_everywhere(
    t2i: T2I, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "p.txt").write_text("a red star\n")
    (home / "key").write_text("a key of two words")
    (home / "settings.toml").write_text('output = "~/by-setting.png"\n')
    dry = ("-m", "postcard", "--dry-run", "--json")
    image = t2i("generate", "x", *dry, "--output=~/a.png")
    assert json.loads(image.stdout)["files"] == [str(home / "a.png")], image.stderr
    image = t2i("generate", "x", *dry, env={"T2I_CONFIG": "~/settings.toml"})
    assert json.loads(image.stdout)["files"] == [str(home / "by-setting.png")]
    batch = t2i("batch", "~/p.txt", *dry, "--output=~/out")
    assert json.loads(batch.stdout)["folder"] == str(home / "out"), batch.stderr
    inspected = t2i("inspect", "~/none.png")
    assert f"Cannot read '{home / 'none.png'}'" in inspected.stderr
    served = t2i("serve", "-m", "postcard", "--api-key-file", "~/key")
    assert f"{home / 'key'} holds no key" in served.stderr
    # And in what is read in this process.
    monkeypatch.setenv("HOME", str(home))
    (home / "model").mkdir()
    assert catalog.folder_named("~/model") == home / "model"
    monkeypatch.setenv("T2I_CONFIG", "~/none.toml")
    monkeypatch.setenv("T2I_VERTEX_PRICES", "~/prices.toml")
    with pytest.raises(T2IError, match=f"Cannot read {home}/prices.toml: No such file"):
        machine_types.load_prices()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


@pytest.mark.parametrize("path", ["~nouser/x", "~nouser/"])
def test_a_home_that_there_is_not_is_told(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert user_paths.expand_home(path) == path
    with pytest.raises(InputError, match="There is no home folder ~nouser"):
        user_paths.expand_option(path)
    monkeypatch.setenv("T2I_CONFIG", path)
    with pytest.raises(InputError, match="There is no home folder ~nouser"):
        store.settings_path()
    (tmp_path / "~nouser").mkdir()
    assert user_paths.expand_option(path) == path
    for plain in ("", "~", "~x.png", "a/~nouser/x", "./~nouser/x", "~\0/x", "\0"):
        assert user_paths.expand_home(plain) in {plain, os.path.expanduser("~")}


def test_only_what_can_be_read_at_once_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "to-pipe").symlink_to("pipe")
    for name in ("pipe", "to-pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(OSError, match="it is no regular file"):
            open_input(tmp_path / name)
    with pytest.raises(OSError, match="it is a folder"):
        open_input(tmp_path)
    with open_input(tmp_path / "link") as file:
        assert file.read() == b"x"
    # A shell's `<(command)`.
    reader, writer = os.pipe()
    os.write(writer, b"from a command")
    os.close(writer)
    with open_input(f"/dev/fd/{reader}") as file:
        assert file.read() == b"from a command"
    os.close(reader)


def test_prompts_are_read_of_a_command_that_the_shell_passes_on(
    t2i_env: dict[str, str], tmp_path: Path
) -> None:
    command = (
        f"{sys.executable} -m t2i_cli batch <(echo a red star) --input-format txt -m postcard "
        "--dry-run --json"
    )
    done = subprocess.run(
        ["bash", "-c", command],
        env=t2i_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout)["images"] == 1, done.stderr


@pytest.mark.parametrize("number", [13, 40, 5])
def test_a_folder_that_cannot_be_listed_is_told(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(Path, "iterdir", refuse)
    said = os.strerror(number)
    with pytest.raises(T2IError, match=said):
        manifest.manifest_files(tmp_path)
    with pytest.raises(ModelError, match=said):
        diffusers_folder.folder_entries(tmp_path)
    (tmp_path / "unet").mkdir()
    with pytest.raises(ModelError, match=said):
        sources.Part("unet", "diffusers", "U", tmp_path / "unet").weights("float16")
    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(ModelError, match=f"Cannot read the model folder a/b: {said}"):
        catalog.folder_named("a/b")
    with pytest.raises(T2IError, match=f"Cannot write to the folder '{tmp_path}': {said}"):
        check_folder(tmp_path)


def test_models_show_calls_no_folder_whole_that_lacks_weights(t2i: T2I, tmp_path: Path) -> None:
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    assert json.loads(t2i("models", "show", "./model", "--json").stdout)["downloaded"] == "partly"
    assert json.loads(t2i("models", "show", "postcard", "--json").stdout)["downloaded"] == "whole"
    for command in ("show", "path"):
        for folder in ("/etc", "."):
            done = t2i("models", command, folder)
            assert (done.returncode, done.stdout) == (9, "")
            assert "so it is not a diffusers model" in done.stderr
