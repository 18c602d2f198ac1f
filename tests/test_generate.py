"""`t2i generate` as real processes: what it makes, what it refuses, and how it is stopped."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests import tiny_models
from tests.amounts import sampled
from tests.conftest import T2I
from training.grade import grade_image

PROMPT = "a purple heart on a white background"
SLUG = "a-purple-heart-on-a-white-background"
POSTCARD = ("-m", "postcard", "--steps", "2")


def files(folder: Path) -> list[str]:
    """The names under a folder, those of the isolated home left out."""
    return sorted(
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.is_file() and "home" not in p.parts
    )


def test_picture_shows_its_prompt_and_records_everything(t2i: T2I, tmp_path: Path) -> None:
    done = t2i("generate", PROMPT, "-m", "postcard", "-s", "3", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    path = tmp_path / result["path"]
    assert path.name == "a-purple-heart-on-a-white-background-3.png"
    with Image.open(path) as image:
        assert image.size == (128, 128)
        assert grade_image(image.convert("RGB"), PROMPT).passed
    assert result["seed"] == 3
    assert result["device"] == "cpu"
    assert result["bytes"] == path.stat().st_size
    # What was planned; on a CPU nothing is measured.
    assert result["memory"].keys() == {"weights_mib", "working_mib"}
    assert 25 <= result["memory"]["weights_mib"] <= 40
    assert 0 < result["memory"]["working_mib"] < 100
    inspected = t2i("inspect", result["path"], "--json")
    record = json.loads(inspected.stdout)
    assert record["request"]["prompt"] == PROMPT
    assert record["lock"]["libraries"].keys() >= {"t2i", "torch", "diffusers", "transformers"}
    assert "step 20 of 20" in done.stderr


def test_strict_makes_the_same_bytes_alone_and_in_a_row_with_one_core_or_two(
    t2i: T2I, tmp_path: Path
) -> None:
    request = ("generate", PROMPT, *POSTCARD, "-q", "--strict")
    two_cores = {"OMP_NUM_THREADS": "2"}
    row = t2i(*request, "-s", "5", "-n", "2", "-o", "row-{index}.png", env=two_cores)
    alone = t2i(*request, "-s", "6", "-o", "alone.png")
    assert row.stdout.splitlines() == ["row-1.png", "row-2.png"]
    assert row.stderr == alone.stderr == ""
    assert (tmp_path / "row-2.png").read_bytes() == (tmp_path / "alone.png").read_bytes()
    assert (tmp_path / "row-1.png").read_bytes() != (tmp_path / "alone.png").read_bytes()


def test_images_of_a_run_share_passes_and_are_told_in_order(t2i: T2I, tmp_path: Path) -> None:
    row = ("generate", PROMPT, *POSTCARD, "--seeds", "8,7,6", "-o", "{index}-{seed}.png", "--json")
    done = t2i(*row, env={"OMP_NUM_THREADS": "2"})
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [image["path"] for image in told] == ["1-8.png", "2-7.png", "3-6.png"]
    assert [image["batch_size"] for image in told] == [2, 2, 1]
    assert [image["threads"] for image in told] == [2, 2, 2]
    assert "image 1-2 of 3: step 2 of 2" in done.stderr
    assert files(tmp_path) == ["1-8.png", "2-7.png", "3-6.png"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--strict", "--batch-size", "2"), "--strict makes one image a pass"),
        (("--batch-size", "none"), "neither auto nor from 1 to 256"),
        (
            ("--strict", "--backend", "http", "--url", "http://127.0.0.1:9"),
            "--strict means nothing",
        ),
    ],
)
def test_sizes_of_passes_that_cannot_be_are_refused(
    t2i: T2I, options: tuple[str, ...], told: str
) -> None:
    done = t2i("generate", PROMPT, *options)
    assert done.returncode == 2
    assert told in done.stderr


def test_bytes_on_stdout_and_prompt_on_stdin(t2i_env: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "t2i_cli",
            "generate",
            "-",
            *POSTCARD,
            "-o",
            "-",
            "--format",
            "webp",
        ],
        input=PROMPT.encode(),
        env=t2i_env,
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert done.stdout[:4] == b"RIFF"
    assert done.stdout[8:12] == b"WEBP"
    assert files(tmp_path) == []


BAD = [
    (("",), 2, "empty"),
    (("x" * 100_000,), 2, "100,000 characters"),
    (("bell\x07",), 2, "U+0007"),
    (("x", "--width", "0"), 2, "width"),
    (("x", "--height=-8"), 2, "height"),
    (("x", "--width", "500"), 2, "nearest is 496"),
    (("x", "--size", "100000x100000"), 2, "width"),
    (("x", "--size", "512x"), 2, "512x768"),
    (("x", "--size", "64x64", "-W", "64"), 2, "not both"),
    (("x", "--steps", "0"), 2, "steps"),
    (("x", "--steps", "10001"), 2, "steps"),
    (("x", "--seed", "-2"), 2, "seed"),
    (("x", "--seed", "4294967296"), 2, "seed"),
    (("x", "--scheduler", "magic"), 2, "dpm++2m-karras"),
    (("x", "--device", "abacus"), 2, "cpu"),
    (("x", "--dtype", "int3"), 2, "float16"),
    (("x", "--memory", "huge"), 2, "auto"),
    (("x", "--format", "gif"), 2, "webp"),
    (("x", "-o", "out.gif"), 2, "gif"),
    (("x", "-o", "{colour}.png"), 2, "{seed}"),
    (("x", "-n", "2", "-o", "one.png"), 2, "{index}"),
    (("x", "-n", "0"), 2, "count"),
    (("x", "--negative-prompt", "y", "--guidance", "1"), 2, "negative prompt"),
    (("x", "-o", "-", "--json"), 2, "not both"),
    (("x", "-p", "y"), 2, "twice"),
    ((), 2, "no prompt"),
    (("x", "--no-such-option"), 2, "--no-such-option"),
    (("x", "--steps", "many"), 2, "--steps"),
    (("x", "-m", "no/such-folder-or-alias/here"), 9, "no/such-folder-or-alias/here"),
    (("x", "-m", "foo"), 9, "hint: `t2i models list`"),
    (("x", "-m", "SD15", "--offline"), 9, "stable-diffusion-v1-5 is not downloaded."),
    (("x", "-m", "civitai:4384"), 9, "hint: `t2i models list`"),
    (("x", "-m", "m" * 300), 9, "hint: `t2i models list`"),
]


IN_ONE_PROCESS = """
import contextlib, io, json, sys
from t2i_cli.cli import main as cli
for arguments in json.load(sys.stdin):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = cli._run(["generate", *arguments])
    print(json.dumps([code, errors.getvalue()]))
"""
"""Runs `t2i generate` with each list of arguments; what it prints beside its answers is no JSON."""


def bad_arguments(arguments: tuple[str, ...]) -> list[str]:
    """With the embedded model, unless they name one."""
    return [*arguments, *(() if "-m" in arguments else ("-m", "postcard"))]


def test_every_bad_input_is_told_in_a_sentence(t2i_env: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS],
        input=json.dumps([bad_arguments(arguments) for arguments, _, _ in BAD]),
        env=t2i_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for (arguments, code, said), (ended, errors) in zip(BAD, answers, strict=True):
        assert ended == code, (arguments, errors)
        assert said in errors
    assert files(tmp_path) == []


@pytest.mark.parametrize(("arguments", "code", "said"), sampled(BAD))
def test_bad_input(
    t2i: T2I, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = t2i("generate", *bad_arguments(arguments))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert files(tmp_path) == []


def empty(folder: Path) -> None:
    folder.mkdir()


def truncated(folder: Path) -> None:
    weights = tiny_models.copy_postcard(folder) / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])


def pickled(folder: Path) -> None:
    weights = tiny_models.copy_postcard(folder) / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def image_to_image(folder: Path) -> None:
    tiny_models.edit_json(
        tiny_models.copy_postcard(folder) / "model_index.json",
        _class_name="StableDiffusionUpscalePipeline",
    )


@pytest.mark.parametrize("break_", [empty, truncated, pickled, image_to_image])
def test_a_folder_that_is_no_usable_model(
    t2i: T2I, tmp_path: Path, break_: Callable[[Path], None]
) -> None:
    break_(tmp_path / "home" / "model")
    done = t2i("generate", "x", "-m", tmp_path / "home" / "model", "-s", "1")
    assert done.returncode == 9, done.stderr
    assert [line[:6] for line in done.stderr.splitlines()] in (["error:"], ["error:", "hint: "])
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_written_to(t2i: T2I, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output in ("/proc/nowhere/x.png", "file/x.png"):
        done = t2i("generate", PROMPT, *POSTCARD, "-o", output)
        assert done.returncode == 2, done.stderr
        assert output.rsplit("/", 1)[0] in done.stderr
    assert files(tmp_path) == ["file"]


def test_errors_are_json_when_json_is_asked_for(t2i: T2I) -> None:
    for arguments in (("x", "--steps", "0"), ("x", "--no-such-option")):
        done = t2i("generate", *arguments, "--json")
        error = json.loads(done.stderr)["error"]
        assert (error["exit"], error["code"]) == (2, "bad_input")
        assert error["message"]


def test_existing_output_is_kept_unless_overwriting(t2i: T2I, tmp_path: Path) -> None:
    taken = tmp_path / "taken.png"
    taken.write_text("mine")
    done = t2i("generate", PROMPT, *POSTCARD, "-o", "taken.png")
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    assert taken.read_text() == "mine"
    assert t2i("generate", PROMPT, *POSTCARD, "-o", "taken.png", "--overwrite").returncode == 0
    assert taken.read_bytes().startswith(b"\x89PNG")


def test_missing_folder_is_made_and_right_to_left_prompt_names_the_file(
    t2i: T2I, tmp_path: Path
) -> None:
    done = t2i("generate", "نجمة حمراء \u202e", *POSTCARD, "-s", "1", "-o", "new/deep/")
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == ["new/deep/نجمة-حمراء-1.png"]
    assert "\u202e" not in done.stderr


def test_disk_that_fills_leaves_nothing(t2i_env: dict[str, str], tmp_path: Path) -> None:
    limited = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500));"
        "from t2i_cli.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, "generate", PROMPT, *POSTCARD, "-o", "full.png"],
        env=t2i_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 11, done.stderr
    assert files(tmp_path) == []


def test_closed_stdout_is_141(t2i_env: dict[str, str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "t2i_cli", "generate", PROMPT, *POSTCARD, "-o", "-"],
        env=t2i_env,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 141
    assert "Traceback" not in errors


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", ["loading", "step"])
def test_stopped_while_loading_and_while_denoising(
    t2i_env: dict[str, str], tmp_path: Path, stop: signal.Signals, code: int, moment: str
) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "t2i_cli", "generate", PROMPT, "-m", "postcard"),
            *("--steps", "1000", "-o", "stopped.png"),
        ],
        env=t2i_env,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if moment in line:
            break
    process.send_signal(stop)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == code
    assert "Traceback" not in rest
    assert files(tmp_path) == []


def test_two_runs_on_one_name_make_one_file(t2i_env: dict[str, str], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "t2i_cli",
        "generate",
        PROMPT,
        *POSTCARD,
        "-o",
        "one.png",
        "-s",
    ]
    runs = [
        subprocess.Popen(
            [*command, seed], env=t2i_env, cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        for seed in ("1", "2")
    ]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    codes = sorted(run.returncode for run in runs)
    assert codes == [0, 2], errors
    assert files(tmp_path) == ["one.png"]
    winner = 1 if runs[0].returncode == 0 else 2
    with Image.open(tmp_path / "one.png") as image:
        assert json.loads(image.info["t2i"])["request"]["seed"] == winner


def test_unknown_words_are_named(t2i: T2I) -> None:
    done = t2i("generate", "a red zeppelin on a white background", *POSTCARD)
    assert done.returncode == 0
    assert "zeppelin" in done.stderr
    assert "t2i models show postcard" in done.stderr


def test_dry_run_loads_nothing_and_writes_nothing(t2i: T2I, tmp_path: Path) -> None:
    done = t2i(
        "generate", PROMPT, "-m", "postcard", "-o", "x/{seed}.png", "-s", "9", "--dry-run", "--json"
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["files"] == ["x/9.png"]
    assert plan["requests"][0]["steps"] == 20
    assert plan["plan"]["device"] == "cpu"
    assert files(tmp_path) == []


def test_a_dry_run_names_no_seed_that_another_run_would_not_use(t2i: T2I, tmp_path: Path) -> None:
    plan = ("generate", PROMPT, "-m", "postcard", "-n", "2", "--dry-run")
    first = json.loads(t2i(*plan, "--json").stdout)
    assert [request["seed"] for request in first["requests"]] == [None, None]
    assert first["files"] == [f"{SLUG}-{{seed}}.png"] * 2
    (tmp_path / "w").mkdir()
    (tmp_path / "w/word.txt").write_text("a\nb\n")
    named = ("-o", "{index}-{id}-{seed:03}.png", "--wildcards", "w")
    people = t2i(*plan, *named)
    lines = people.stdout.splitlines()
    assert [line for line in lines if "seed" in line or "file" in line] == [
        *("file: 1-{id}-{seed}.png", "  seed: drawn at random"),
        *("file: 2-{id}-{seed}.png", "  seed: drawn at random"),
    ]
    assert "A seed is drawn for each run, and values of wildcards with it." in people.stderr
    # A seed that is given is the one that is used.
    given = json.loads(t2i(*plan, "--json", "-s", "7").stdout)
    assert [request["seed"] for request in given["requests"]] == [7, 8]
    assert given["files"] == [f"{SLUG}-7.png", f"{SLUG}-8.png"]


def test_a_size_far_from_the_models_own_is_noted(t2i: T2I, tmp_path: Path) -> None:
    args = ("generate", PROMPT, "-m", "postcard", "-s", "1", "--dry-run")
    note = "postcard knows images of 128x128: at 512x512 they may be distorted."
    done = t2i(*args, "--size", "512x512", "--json")
    assert done.stderr == f"{note}\n"
    assert json.loads(done.stdout)["notes"] == [note]
    assert t2i(*args, "--size", "512x512", "-q").stderr == ""
    assert t2i(*args, "--size", "128x192").stderr == ""
    rows = "".join(f'{{"prompt": "a star", "width": {w}, "height": {w}}}\n' for w in (512, 128))
    (tmp_path / "rows.jsonl").write_text(rows * 2)
    plan = ("batch", "rows.jsonl", "-m", "postcard", "--dry-run")
    assert t2i(*plan).stderr == f"{note} (2 images: lines 1, 3)\n"
    assert t2i(*plan, "-q").stderr == ""


HEAVY = """
import contextlib, io, json, sys
from t2i_cli.cli import main as cli
heavy = {"torch", "diffusers", "transformers", "PIL", "google.auth", "huggingface_hub"}
heavy.add("rich.console")
for path in [[], *map(list, cli.command_paths())]:
    for option in ("--help", "--no-such-option"):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = cli._run([*path, option])
        found = sorted(heavy & set(sys.modules))
        print(json.dumps([path, option, code, said.getvalue(), found]))
"""
"""Every command's help and its refusal, in one process, and what has been imported by then."""


def test_help_and_refusals_import_nothing_heavy(t2i_env: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEAVY],
        env=t2i_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) > 40
    for path, option, code, said, heavy in answers:
        assert heavy == [], (path, option)
        assert code == (0 if option == "--help" else 2)
        assert ("Usage: t2i" if option == "--help" else "--no-such-option") in said


def test_environment_and_config_choose_the_model(t2i: T2I) -> None:
    assert t2i("config", "set", "model", "sdxl").returncode == 0
    plan = t2i("generate", "x", "--dry-run", "--json", env={"T2I_MODEL": "postcard"})
    assert json.loads(plan.stdout)["requests"][0]["model"] == "postcard"


def test_a_bug_shows_its_traceback(t2i_env: dict[str, str], tmp_path: Path) -> None:
    program = """
from t2i_cli.backends.local import outcomes
def bug(*args): raise ZeroDivisionError("it broke")
outcomes.generation_info_for = bug
from t2i_cli.cli.main import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "generate", PROMPT, *POSTCARD, "-q"],
        env=t2i_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.rstrip().endswith("ZeroDivisionError: it broke")
    assert files(tmp_path) == []


@pytest.mark.parametrize("command", ["config", "inspect"])
@pytest.mark.parametrize("kind", ["ZeroDivisionError", "RecursionError", "RuntimeError"])
def test_a_bug_ends_in_the_same_object_as_any_error(
    t2i_env: dict[str, str], tmp_path: Path, command: str, kind: str
) -> None:
    program = f"""
from t2i_cli.output import metadata
from t2i_cli.settings import store
def bug(*args): raise {kind}("it\\nbroke")
metadata.read_metadata = store.find_setting = bug
from t2i_cli.cli.main import main
main()
"""
    arguments = {"config": ("list",), "inspect": ("a.png",)}[command]
    done = subprocess.run(
        [sys.executable, "-c", program, command, *arguments, "--json"],
        env=t2i_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    *trace, last = done.stderr.splitlines()
    assert trace[0] == "Traceback (most recent call last):"
    assert trace[-2:] == [f"{kind}: it", "broke"]
    error = json.loads(last)["error"]
    assert (error["code"], error["exit"]) == ("bug", 1)
    assert error["message"] == f"An unexpected {kind}: it broke"
    assert set(error) == {"code", "exit", "message", "hint"}
