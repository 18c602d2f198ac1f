"""Notes on images: they carry their row, are kept with the image, and are told grouped."""

import base64
import io
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image

from t2i_cli.batch.note_groups import NoteGroups
from tests.conftest import T2I
from tests.fakes.images_server import FakeImages, Fault, running_images

SCHEMA = Path(__file__).parent.parent / "docs/events.schema.json"
UNREAD = "The prompt is too long for the text encoder, which does not read: stars"
Run = Callable[..., subprocess.CompletedProcess[str]]
"""Runs a command on the server; `dialect` says in which dialect."""
PROMPTS = "plain\ndark one\nplain too\ndark two\n"


@pytest.fixture
def server() -> Iterator[FakeImages]:
    """A server of t2i's that notes something on prompts with the word dark."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")

    def fault(body: dict[str, Any]) -> Fault | None:
        record = {"request": {"seed": body.get("seed")}, "lock": {}, "seconds": 1}
        entry: dict[str, object] = {
            "b64_json": base64.b64encode(buffer.getvalue()).decode(),
            "t2i": record,
        }
        dark = "dark" in body["prompt"]
        return Fault(entry=entry | ({"notes": [UNREAD]} if dark else {}))

    with running_images() as running:
        running.owner = "t2i"
        running.fault = fault
        yield running


@pytest.fixture
def run(t2i: T2I, server: FakeImages, tmp_path: Path) -> Run:
    """Runs a command on the server; the process that has ended."""
    (tmp_path / "prompts.txt").write_text(PROMPTS)

    def call(*args: str, dialect: str = "t2i") -> subprocess.CompletedProcess[str]:
        done = t2i(
            *args,
            *("-m", "painter", "--backend", "http", "--dialect", dialect, "--size", "64x64"),
            env={"T2I_HTTP_URL": server.url},
        )
        assert done.returncode == 0, done.stderr
        return done

    return call


def lines(path: Path) -> dict[str, Any]:
    """The manifest's lines of images, by prompt."""
    records = map(json.loads, path.read_text().splitlines())
    return {record["request"]["prompt"]: record for record in records if "id" in record}


def test_a_batch_keeps_notes_with_their_rows_and_tells_them_once(run: Run, tmp_path: Path) -> None:
    done = run("batch", "prompts.txt", "-o", "out", "--json")
    assert json.loads(done.stdout)["notes"] == [{"message": UNREAD, "images": 2, "lines": [2, 4]}]
    assert done.stderr.count(UNREAD) == 1
    assert f"{UNREAD} (2 images: lines 2, 4)" in done.stderr
    recorded = lines(tmp_path / "out/manifest.jsonl")
    assert {prompt: line.get("notes") for prompt, line in recorded.items()} == {
        "plain": None,
        "dark one": [UNREAD],
        "plain too": None,
        "dark two": [UNREAD],
    }
    for line in recorded.values():
        with Image.open(tmp_path / "out" / line["file"]) as image:
            assert json.loads(image.info["t2i"]).get("notes") == line.get("notes")


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_quiet_hides_notes_on_stderr_alone(
    run: Run,
    t2i: T2I,
    tmp_path: Path,
    format: str,
) -> None:
    done = run("batch", "prompts.txt", "-o", "out", "--json", "-q", "--format", format)
    assert UNREAD not in done.stderr
    assert json.loads(done.stdout)["notes"][0]["images"] == 2
    file = tmp_path / "out" / lines(tmp_path / "out/manifest.jsonl")["dark one"]["file"]
    assert json.loads(t2i("inspect", "--json", file).stdout)["notes"] == [UNREAD]
    assert UNREAD in t2i("inspect", file).stdout


def test_events_name_the_rows_of_a_note(run: Run, tmp_path: Path) -> None:
    done = run("batch", "prompts.txt", "-o", "out", "--events")
    events = [json.loads(line) for line in done.stderr.splitlines() if line[:1] == "{"]
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for event in events:
        validator.validate(event)
    dark = {
        line["id"]
        for prompt, line in lines(tmp_path / "out/manifest.jsonl").items()
        if "dark" in prompt
    }
    noted = [event for event in events if event["event"] == "note" and event["message"] == UNREAD]
    assert {row_id for event in noted for row_id in event["ids"]} == dark
    made = {event["id"]: event.get("notes") for event in events if event["event"] == "image"}
    assert {row_id for row_id, notes in made.items() if notes == [UNREAD]} == dark
    assert events[-1]["notes"] == [{"message": UNREAD, "images": 2, "lines": [2, 4]}]


def test_generate_keeps_a_note_with_every_image_and_tells_it_once(run: Run, tmp_path: Path) -> None:
    done = run("generate", "dark", "-n", "3", "-o", "x-{index}.png", "--json")
    assert [json.loads(line)["notes"] for line in done.stdout.splitlines()] == [[UNREAD]] * 3
    assert done.stderr.count(UNREAD) == 1
    with Image.open(tmp_path / "x-2.png") as image:
        assert json.loads(image.info["t2i"])["notes"] == [UNREAD]


def test_what_lenient_leaves_out_is_noted_with_its_images(run: Run, tmp_path: Path) -> None:
    rows = [{"prompt": "plain"}, {"prompt": "plain too", "negative_prompt": "x"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ("--lenient", "--json")
    done = run("batch", "prompts.jsonl", "-o", "out", *options, dialect="openai")
    [note] = [n for n in json.loads(done.stdout)["notes"] if "negative" in n["message"]]
    assert (note["images"], note["lines"]) == (1, [2])
    assert f"warning: line 2: {note['message']}" in done.stderr
    assert note["message"] in lines(tmp_path / "out/manifest.jsonl")["plain too"]["notes"]
    done = run(
        "generate", "plain", "--negative-prompt", "x", "-o", "y.png", *options, dialect="openai"
    )
    assert note["message"] in json.loads(done.stdout)["notes"]
    with Image.open(tmp_path / "y.png") as image:
        assert note["message"] in json.loads(image.info["t2i"])["notes"]


def test_many_notes_are_cut_for_people_and_whole_in_json() -> None:
    groups = NoteGroups()
    for number in range(1, 31):
        groups.add(f"note {number}", f"{number:016x}", number)
        groups.add("for all", f"{number:016x}", number)
        groups.add("for all", f"{number:016x}", number)
    told = list(groups.texts())
    assert told[0] == "line 1: note 1"
    assert told[1] == "for all (30 images: lines 1, 2, 3, 4, 5, …)"
    assert told[-1] == "11 more notes are in the manifest."
    assert len(groups.to_json()) == 31
