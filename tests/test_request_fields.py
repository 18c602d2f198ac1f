"""A field of a request is declared once: a copy of t2i with one more has it everywhere."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import t2i_cli
from tests import factories

SOURCE = Path(t2i_cli.__file__).parent
ROOT = Path(__file__).parent.parent
DECLARED = """
    eta: float | None = _declared(
        RequestField(
            flags=("--eta",),
            help="How far to take back overexposure.",
            label="Rescale",
            low=0,
            high=1,
            dialects=_named("eta", "t2i"),
            servings=frozenset({"t2i"}),
            pipeline="eta",
            infotext="Eta",
        )
    )
"""
OF_RECORDS = """
    inputs: tuple[tuple[str, float], ...] | None = _declared(
        RequestField(
            flags=("--inputs",),
            help="Files with weights.",
            label="Inputs",
            parse=lambda given: tuple(
                (str(name), float(weight))
                for name, weight in (
                    [part.split(":") for part in given.split(",")]
                    if isinstance(given, str)
                    else given
                )
            ),
            to_json=lambda value: [list(pair) for pair in value],
            digest=lambda value: [[open(name).read(), weight] for name, weight in value],
            dialects=_named("inputs", "t2i"),
        )
    )
"""
BEFORE = "\n\ndef _field_table()"


def copied(folder: Path, declaration: str) -> Path:
    """A copy of t2i with one more field, made by that declaration alone."""
    shutil.copytree(
        SOURCE, folder / "t2i_cli", ignore=shutil.ignore_patterns("postcard", "__pycache__")
    )
    (folder / "t2i_cli/postcard").symlink_to(SOURCE / "postcard")
    table = folder / "t2i_cli/request_fields.py"
    text = table.read_text(encoding="utf-8")
    assert text.count(BEFORE) == 1
    table.write_text(text.replace(BEFORE, declaration + BEFORE), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A t2i with `eta`."""
    return copied(tmp_path_factory.mktemp("extended"), DECLARED)


def run(
    source: Path, env: dict[str, str], cwd: Path, *arguments: str, **more: str
) -> "subprocess.CompletedProcess[str]":
    """A process of the copy: `python ARGUMENTS`."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=env | {"PYTHONPATH": f"{source}{os.pathsep}{ROOT}"} | more,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_command_line_has_it(extended: Path, t2i_env: dict[str, str], tmp_path: Path) -> None:
    def t2i(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return run(extended, t2i_env, tmp_path, "-m", "t2i_cli", *arguments, **more)

    assert "--eta NUMBER How far to take back" in " ".join(t2i("generate", "--help").stdout.split())
    words = {
        "COMP_WORDS": "t2i batch --et",
        "COMP_CWORD": "2",
        "_T2I_COMPLETE": "complete_bash",
    }
    assert t2i(**words).stdout.split() == ["--eta"]
    wrong = t2i("generate", "x", "-m", "postcard", "--eta", "9", "--json")
    assert wrong.returncode == 2
    error = json.loads(wrong.stderr)["error"]
    assert error["message"] == "eta must be from 0 to 1, not 9.0."
    done = t2i(
        *("generate", "a red star", "-m", "postcard", "-s", "1", "--steps", "1"),
        *("--eta", "0.5", "-o", "{eta}-{seed}.png"),
    )
    assert (done.returncode, done.stdout) == (0, "0.5-1.png\n"), done.stderr
    told = json.loads(t2i("inspect", "0.5-1.png", "--json").stdout)
    assert told["request"]["eta"] == 0.5
    assert told["parameters"]["Eta"] == "0.5"
    assert re.search(r"eta +0\.5\n", t2i("inspect", "0.5-1.png").stdout)


def test_everything_else_has_it(extended: Path, t2i_env: dict[str, str], tmp_path: Path) -> None:
    done = run(extended, t2i_env, tmp_path, "-m", "tests.added_field")
    assert done.returncode == 0, done.stderr
    rows, server, remote, records = json.loads(done.stdout.splitlines()[-1])
    assert rows == {
        "read": [0.5, 0.7],
        "wrong": ["must be a number, not 'two'."],
        "varied": [0.1, 0.2],
        "ids": 2,
        "keys": 2,
        "refused": ["eta must be from 0 to 1, not 9."],
        "shown": True,
    }
    assert server == {
        "schemas": ["GenerationBody", "ImageRequest", "PredictBody"],
        "sent": [0.5],
        "recorded": 0.5,
        "page": True,
    }
    where = "The server at http://x/v1 (sglang dialect)"
    assert remote == {
        "refused": f"eta: {where} takes no eta.",
        "vertex": ["t2i"],
    }
    assert (records["name"], records["infotext"], records["parsed"]) == ("0.5-42.png", True, 0.5)
    assert records["docs"]
    assert records["ids"][:2] == [
        factories.REQUEST.identity(),
        factories.REQUEST.identity(3, seed=7),
    ]
    assert records["ids"][2] not in records["ids"][:2]
    assert records["json"] == list(factories.REQUEST.to_json())


def test_ids_are_what_they_always_were() -> None:
    # Of version 0.1: a folder that it made is resumed by these.
    assert factories.REQUEST.identity() == "d402d110f2fb25f9"
    assert factories.REQUEST.identity(3, seed=7) == "d331168fbff86fa4"
    none = dict.fromkeys(("negative_prompt", "revision", "steps", "width", "height", "scheduler"))
    assert factories.request(**none, guidance_scale=None).identity() == "605c835198603c72"


def test_a_field_of_records_is_read_written_and_identified_by_content(
    t2i_env: dict[str, str], tmp_path: Path
) -> None:
    extended = copied(tmp_path / "source", OF_RECORDS)
    code = (
        "import json; from tests import factories; from t2i_cli.prompts import entries\n"
        "text = entries.parse_value('inputs', 'a.bin:0.5')\n"
        "rows = entries.check_value('inputs', [['a.bin', 0.5]])\n"
        "one = factories.request(inputs=text)\n"
        "before = one.identity(); key = hash(one.batch_key())\n"
        "open('a.bin', 'w').write('other'); after = one.identity()\n"
        "from t2i_cli.server.schemas import ImageRequest\n"
        "body = ImageRequest(prompt='x', inputs=[['a.bin', 0.5]]).request()\n"
        "from t2i_cli.backends.http import dialects; from t2i_cli.request_fields import DIALECTS\n"
        "sent = dialects.build_image_request(one, 'm', DIALECTS['t2i'], None)\n"
        "same = text == rows == body.inputs\n"
        "print(json.dumps([same, before != after, one.to_json()['inputs'], sent['inputs']]))"
    )
    (tmp_path / "a.bin").write_text("first")
    done = run(extended, t2i_env, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, True, [["a.bin", 0.5]], [["a.bin", 0.5]]]
    command = ("-m", "t2i_cli", "generate", "x", "-m", "postcard", "--json", "--inputs", "a.bin:1")
    done = run(extended, t2i_env, tmp_path, *command)
    assert done.returncode == 2
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["message"] == "postcard takes no inputs on this machine."
    assert list(tmp_path.glob("*.png")) == []


def test_few_files_name_a_field() -> None:
    names = [path for path in SOURCE.rglob("*") if path.suffix in {".py", ".js", ".html"}]
    naming = [path for path in names if "guidance_scale" in path.read_text(encoding="utf-8")]
    assert len(naming) <= 12, naming


def test_requests_know_no_room(t2i_env: dict[str, str]) -> None:
    code = (
        "import sys, t2i_cli.request;"
        "print(sorted(name for name in sys.modules if name.startswith('t2i_cli.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=t2i_env, capture_output=True, text=True, check=True
    )
    contracts = ["errors", "known_names", "known_secrets", "part_source", "request"]
    contracts += ["request_adapters", "request_extras", "request_field", "request_fields"]
    contracts += ["schedule_names", "style_names"]
    assert done.stdout.strip() == str([f"t2i_cli.{name}" for name in contracts])
