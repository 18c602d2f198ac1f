"""`t2i batch` as real processes, up to the point where weights are loaded, and once beyond."""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from t2i_cli import postcard
from tests.conftest import T2I
from tests.fakes.hub import FakeHub, Repo
from tests.processes import watched

SOURCE = Path(__file__).parent.parent


def test_help_names_every_option_without_heavy_imports(t2i_env: dict[str, str]) -> None:
    script = (
        "import sys; from t2i_cli.cli.main import _run; code = _run(['batch', '--help']);"
        "heavy = {'torch', 'diffusers', 'transformers', 'PIL', 'google.auth', 'rich'};"
        "print(sorted(heavy & set(sys.modules)), code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=t2i_env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[] 0"
    for option in ("--vary", "--shard", "--events", "--max-failures", "--skip-invalid", "--merge"):
        assert option in done.stdout


def test_every_wrong_line_is_told_before_anything_is_loaded(t2i: T2I, tmp_path: Path) -> None:
    rows = ['{"prompt": "a", "steps": 0}', '{"prompt": "b", "stepz": 1}', "{", '{"prompt": "c"}']
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    done = t2i("batch", "p.jsonl", "-m", "postcard")
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.partition(" enclosed")[0] for line in done.stderr.splitlines()[:4]] == [
        "error: p.jsonl is wrong in 3 lines:",
        "  p.jsonl:1: steps: steps must be from 1 to 1000, not 0.",
        "  p.jsonl:2: stepz: unknown field; did you mean steps?",
        "  p.jsonl:3: this is not JSON: Expecting property name",
    ]
    assert not (tmp_path / "t2i-out").exists()
    told = t2i("batch", "p.jsonl", "-m", "postcard", "--json")
    error = json.loads(told.stderr)["error"]
    assert [problem["line"] for problem in error["problems"]] == [1, 2, 3]


def test_options_that_contradict_or_miss_are_refused(t2i: T2I, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red star\n")
    for args, message in (
        ([], "There is no prompts file"),
        (["p.txt", "--merge", "out"], "--merge takes no prompts file"),
        (["--merge", "out", "--dry-run"], "--merge takes no --"),
        (["p.txt", "--name", "{slug}.png", "--format", "jpeg"], "--format jpeg contradicts"),
        (["p.txt", "--vary", "seed=1,2", "--seeds", "5-9"], "both set seed"),
        (["p.txt", "--strict", "--batch-size", "4"], "--strict makes one image a pass"),
    ):
        done = t2i("batch", *args, "-m", "postcard")
        assert done.returncode == 2
        assert message in done.stderr


def test_what_the_machine_is_to_blame_for_has_its_own_code(t2i: T2I, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red star\na house\n")
    for args, code, hint in (
        (["-m", "postcard", "--size", "16384x16384"], 7, "It would fit with --size"),
        (["-m", "sd15", "--offline"], 9, "`t2i models pull"),
    ):
        done = t2i("batch", "p.txt", *args, "--json")
        error = json.loads(done.stderr)["error"]
        assert (done.returncode, error["exit"]) == (code, code)
        assert hint in error["hint"]
    assert not (tmp_path / "t2i-out").exists()


def test_merge_with_a_dry_run_changes_nothing(t2i: T2I, tmp_path: Path) -> None:
    shard = tmp_path / "out" / "manifest-1-of-2.jsonl"
    shard.parent.mkdir()
    shard.write_text('{"t2i_manifest": 1}\n')
    assert t2i("batch", "--merge", "out", "--dry-run").returncode == 2
    assert list(shard.parent.iterdir()) == [shard]
    assert t2i("batch", "--merge", "out", "--json").returncode == 0
    assert not shard.exists()


def test_a_varied_model_needs_no_default_one(t2i: T2I, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red star\n")
    args = ("batch", "p.txt", "--vary", "model=postcard", "--dry-run", "--json")
    plan = json.loads(t2i(*args).stdout)
    assert [group["model"] for group in plan["groups"]] == ["postcard"]


def test_dry_run_reads_standard_input_and_prints_the_plan(t2i: T2I, tmp_path: Path) -> None:
    done = t2i(
        *("batch", "-", "-m", "postcard", "--dry-run", "--json", "--vary", "steps=5,10"),
        input="a {red|blue} star\na house\n",
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["images"], plan["to_make"]) == (6, 6)
    assert plan["models"][0]["device"] == "cpu"
    assert plan["models"][0]["download_mib"] == 0
    assert not (tmp_path / "t2i-out").exists()


def test_file_in_images_out_and_again(t2i: T2I, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(
        "prompt,steps,name\na red star,2,star.webp\na house at night,3,\n", encoding="utf-8-sig"
    )
    args = ("batch", "p.csv", "-m", "postcard", "-o", "out", "--sheet", "--seed", "5")
    done = t2i(*args)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "out/00002-a-house-at-night-6.png",
        "out/star.webp",
    ]
    assert "2 of 2 images are done; 2 made in" in done.stderr
    with Image.open(tmp_path / "out" / "star.webp") as image:
        assert (image.format, image.size) == ("WEBP", (128, 128))
    inspected = json.loads(t2i("inspect", "out/star.webp", "--json").stdout)
    assert (inspected["request"]["steps"], inspected["request"]["seed"]) == (2, 5)
    assert (tmp_path / "out" / "sheet.png").exists()
    again = t2i(*args, "--json")
    assert json.loads(again.stdout)["made"] == 0
    assert again.returncode == 0


def test_terminal_sees_one_live_line_that_goes_away(
    t2i_env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("\n".join(f"a red star {n}" for n in range(8)))
    code, output, text = watched(
        [sys.executable, "-m", "tests.fakes.batch_process", "p.txt", "out"],
        env=t2i_env | {"PYTHONPATH": str(SOURCE), "PAUSE": "0.15"},
        cwd=tmp_path,
    )
    assert code == 0
    assert len(output.splitlines()) == 8
    assert "step 1 of 2" in text
    assert " of 8, " in text
    assert "images/s" in text
    assert "s left" in text
    assert "8 of 8 images are done" in text.splitlines()[-1]
    # The line is written over, not repeated.
    assert "\x1b[2K" in text


def test_model_from_the_hub_stays_at_its_first_commit(
    t2i: T2I, hub: FakeHub, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a red star\na blue house\n")
    hub.repos["some/postcard"] = Repo.from_folder(postcard.FOLDER)
    first = hub.repos["some/postcard"].commit
    args = ("batch", "p.txt", "-m", "some/postcard", "--size", "128x128", "--steps", "1", "--json")
    plan = json.loads(t2i(*args, "--dry-run", env=hub.environment).stdout)
    assert plan["models"][0]["download_mib"] > 1
    assert plan["groups"][0]["revision"] == first
    done = t2i(*args, "--limit", "1", env=hub.environment)
    assert done.returncode == 0, done.stderr
    hub.repos["some/postcard"].files["README.md"] = b"a new commit"
    assert hub.repos["some/postcard"].commit != first
    again = json.loads(t2i(*args, "--dry-run", env=hub.environment).stdout)
    assert (again["done"], again["to_make"]) == (1, 1)
    assert again["groups"][0]["revision"] == first
    lines = (tmp_path / "t2i-out" / "manifest.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"model": "some/postcard", "revision": None, "pin": first}
    assert json.loads(lines[2])["lock"]["revision"] == first


def test_show_needs_a_terminal_and_stderr_for_itself(t2i: T2I, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red star\n")
    for args, message in (
        (("--show",), "--show draws on a terminal"),
        (("--show", "--events"), "--events has stderr to itself"),
    ):
        done = t2i("batch", "p.txt", "-m", "postcard", *args)
        assert done.returncode == 2
        assert message in done.stderr
    assert not (tmp_path / "t2i-out").exists()


def painted(
    t2i_env: dict[str, str], folder: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """A batch of p.txt into out, made by a process with a stub backend."""
    return subprocess.run(
        [sys.executable, "-m", "tests.fakes.batch_process", "p.txt", "out", *options],
        env=t2i_env | {"PYTHONPATH": str(SOURCE)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_rows_bug_is_that_rows(t2i_env: dict[str, str], tmp_path: Path) -> None:
    prompts = [f"a red star {n}" for n in range(6)]
    (tmp_path / "p.txt").write_text("\n".join([*prompts[:3], "a bug", *prompts[3:], "one bug"]))
    done = painted(t2i_env, tmp_path, "--json", "-v")
    assert done.returncode == 8, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["done"], summary["failures"], summary["stopped"]) == (6, {"bug": 2}, None)
    assert (tmp_path / "out" / "index.html").exists()
    assert len(list((tmp_path / "out").glob("*.png"))) == 6
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[1:]
    failed = [line for line in map(json.loads, lines) if line["status"] == "failed"]
    assert [line["line"] for line in failed] == [4, 8]
    assert failed[0]["error"]["message"] == "An unexpected RuntimeError: the backend broke"
    assert done.stderr.count("Traceback (most recent call last)") == 2
    # It stays failed until it is asked for, and nothing else is made again.
    again = painted(t2i_env, tmp_path, "--json")
    assert (again.returncode, json.loads(again.stdout)["made"]) == (8, 0)
    assert "Traceback" not in again.stderr
    again = painted(t2i_env, tmp_path, "--json", "--retry-failed")
    assert (again.returncode, json.loads(again.stdout)["failures"]) == (8, {"bug": 2})


def test_a_bug_of_a_rows_check_shows_its_traceback_with_verbose(
    t2i_env: dict[str, str], tmp_path: Path
) -> None:
    program = """
from t2i_cli.backends.local.backend import LocalBackend
def check(self, request):
    if request.steps == 3: raise ZeroDivisionError("it broke")
LocalBackend.check = check
LocalBackend.estimate = lambda self, request: {}
from t2i_cli.cli.main import main
main()
"""
    rows = [{"prompt": "a"}, {"prompt": "b", "steps": 3}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for options in ((), ("-v",)):
        done = subprocess.run(
            [sys.executable, "-c", program, "batch", "p.jsonl", "-m", "postcard", "--dry-run"]
            + list(options),
            env=t2i_env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "p.jsonl:2: An unexpected ZeroDivisionError: it broke" in done.stderr
        assert done.stderr.count("Traceback (most recent call last)") == len(options)


def test_a_bug_in_every_row_ends_the_run_early(t2i_env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(f"bug {n}" for n in range(500)))
    done = painted(t2i_env, tmp_path, "--json")
    assert done.returncode == 1
    summary = json.loads(done.stdout)
    assert (summary["failed"], summary["left"], summary["exit"]) == (3, 497, 1)
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert "The first 3 images failed alike and unexpectedly" in error["message"]
    assert "RuntimeError: the backend broke" in error["message"]
    assert "Traceback" not in done.stderr


def test_a_rows_model_that_is_none_is_named_and_can_be_left_out(t2i: T2I, tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "model": "postcard"},
        {"prompt": "b", "model": "Postcart"},
        {"prompt": "c", "model": "a\0b"},
        {"prompt": "d", "model": ""},
        {"prompt": "e", "model": True},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    # The hub of these processes refuses every connection: to ask it would end the run with 6.
    done = t2i("batch", "p.jsonl", "--dry-run")
    assert done.returncode == 2, done.stderr
    told = [line.partition(" `t2i")[0] for line in done.stderr.splitlines()]
    assert told[:5] == [
        "error: p.jsonl is wrong in 4 lines:",
        "  p.jsonl:2: model: The model 'Postcart' is unknown. Did you mean postcard?",
        "  p.jsonl:3: model: model has the control character U+0000 at position 2.",
        "  p.jsonl:4: model: The model is empty.",
        "  p.jsonl:5: model: must be text, not True.",
    ]
    plan = json.loads(t2i("batch", "p.jsonl", "--skip-invalid", "--dry-run", "--json").stdout)
    assert (plan["images"], plan["invalid"]) == (1, 4)
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows[2:])))
    for prompts in ("p.jsonl", "p2.jsonl"):
        (tmp_path / "p2.jsonl").write_text(json.dumps(rows[4]))
        alone = t2i("batch", prompts, "--skip-invalid")
        assert alone.returncode == 2
        assert f"{prompts} is wrong in" in alone.stderr


def test_anothers_page_and_picture_stay(t2i: T2I, tmp_path: Path) -> None:
    """With the embedded model, and then without any."""
    (tmp_path / "p.txt").write_text("a red star\n")
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("<title>My site</title>")
    (site / "sheet.png").write_bytes(b"my sheet")
    done = t2i("batch", "p.txt", "-m", "postcard", "--steps", "1", "-o", "site", "--sheet")
    assert done.returncode == 0, done.stderr
    assert (
        "'site/index.html' is not t2i's and stays as it is; see 'site/gallery.html'" in done.stderr
    )
    assert (
        "'site/sheet.png' is not t2i's and stays as it is; see 'site/t2i-sheet.png'" in done.stderr
    )
    (site / "manifest.jsonl").rename(site / "manifest-1-of-1.jsonl")
    with (site / "manifest-1-of-1.jsonl").open("ab") as book:
        book.write(b'{"id": "x", "status": []}\n' + b"[" * 100_000 + b"\n")
    done = t2i("batch", "--merge", "site")
    assert done.returncode == 0, done.stderr
    assert "warning: 2 lines of the manifest cannot be read" in done.stderr
    assert "see 'site/gallery.html'" in done.stderr
    assert "1 shards merged: 1 done; site/gallery.html" in done.stderr
    assert (site / "index.html").read_text() == "<title>My site</title>"
    assert (site / "sheet.png").read_bytes() == b"my sheet"
    (site / "gallery.html").write_text("mine, too")
    done = t2i("batch", "--merge", "site")
    assert done.returncode == 2
    assert "Neither index.html nor gallery.html in 'site' is t2i's" in done.stderr


def test_planted_state_is_one_sentence(t2i: T2I, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red star\n")
    (tmp_path / "notes.txt").write_text("precious")
    for name in (".t2i/lock", "manifest.jsonl"):
        for plant in (lambda path: path.symlink_to(tmp_path / "notes.txt"), os.mkfifo):
            path = tmp_path / "out" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            plant(path)
            done = t2i("batch", "p.txt", "-m", "postcard", "-o", "out", timeout=60)
            assert done.returncode == 2, done.stderr
            assert done.stderr.startswith("error: ")
            assert name in done.stderr
            assert (tmp_path / "notes.txt").read_text() == "precious"
            path.unlink()
