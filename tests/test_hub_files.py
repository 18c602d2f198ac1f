"""Single files of weights in repositories of the Hub: models, parts, revisions, refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from t2i_cli.errors import (
    AccessError,
    InputError,
    ModelError,
    RemoteError,
    StorageError,
    T2IError,
)
from t2i_cli.events import Event, Notice
from t2i_cli.hub import repository_file
from t2i_cli.model_spec import ModelSpec
from t2i_cli.models import composed_model, composed_root, header_files
from t2i_cli.models.checkpoint_file import read_checkpoint
from t2i_cli.models.file_digests import sha256_of
from t2i_cli.models.hub_sources import HubSource, parse_hub_source
from t2i_cli.models.model_files import ModelFiles
from t2i_cli.part_source import PartSource
from t2i_cli.request import ResolvedRequest
from tests import factories, tiny_checkpoints
from tests.conftest import T2I
from tests.fakes.hub import FakeHub, Repo
from tests.hub_in_process import use_fake_hub

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
CARD = b"---\nlicense: other\nlicense_name: dreamy-1.0\n---\n# Dreamy\n\nlicense: mit\n"
DREAMY = "ann/dreamy/v1/dreamy.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `sd15`, a file of it, and its VAE as a file."""
    return tiny_checkpoints.save_sd15(tmp_path_factory.mktemp("models"))


@pytest.fixture
def files(hub: FakeHub, models: Path) -> FakeHub:
    """The hub with the base, and a repository of single files."""
    hub.repos[SD15] = Repo.from_folder(models / "sd15")
    hub.repos["ann/dreamy"] = Repo(
        {
            "README.md": CARD,
            "v1/dreamy.safetensors": (models / "sd15.safetensors").read_bytes(),
            "vae.safetensors": (models / "vae.safetensors").read_bytes(),
            "old.ckpt": b"\x80\x02}q\x00.",
        }
    )
    hub.repos["ann/fine-vae"] = Repo.from_folder(models / "sd15/vae")
    hub.repos["ann/fine-vae"].files["README.md"] = b"---\nlicense: mit\n---\n"
    return hub


@pytest.fixture
def cache(files: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and this process's huggingface_hub pointed at the fake hub."""
    monkeypatch.setattr(composed_root, "user_folder", lambda _: tmp_path / "t2i")
    return use_fake_hub(files, tmp_path, monkeypatch)


def resolve(name: str, revision: str | None = None, **parts: str) -> ModelSpec:
    """The spec of a model with parts."""
    return composed_model.resolve_with_parts(
        name,
        revision,
        {field: PartSource(source) for field, source in parts.items()},
        offline=False,
        trust_remote_code=False,
    )


def whole_files(hub: FakeHub) -> list[str]:
    """The files of weights that were fetched whole."""
    return [s.path for s in hub.requests if s.path.startswith("/cdn/") and not s.range]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ann/pic", ("ann/pic", None, None)),
        ("ann/pic@v1.0", ("ann/pic", "v1.0", None)),
        ("ann/pic@refs/pr/3", ("ann/pic", "refs/pr/3", None)),
        ("ann/pic/a/b.safetensors", ("ann/pic", None, "a/b.safetensors")),
        ("ann/pic/b.Q8_0.gguf@v1", ("ann/pic", "v1", "b.Q8_0.gguf")),
        ("ann/pic/a@2x.safetensors", ("ann/pic", None, "a@2x.safetensors")),
        ("https://huggingface.co/ann/pic/blob/v1/a/b%20c.gguf", ("ann/pic", "v1", "a/b c.gguf")),
        ("hf.co/ann/pic/resolve/main/b.sft?download=true", ("ann/pic", "main", "b.sft")),
        ("loras/snow.safetensors", None),
        ("./ann/pic/b.safetensors", None),
        ("ann/../b.safetensors", None),
        ("/ann/pic/b.safetensors", None),
        ("snow", None),
        ("ann/pic/unet", None),
    ],
)
def test_one_spelling_names_repository_revision_and_file(
    text: str, named: tuple[str, str | None, str | None] | None
) -> None:
    assert parse_hub_source(text) == (named and HubSource(*named))


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/ann/pic/blob/main/../../x.safetensors",
        "https://huggingface.co/ann/pic/blob/main/%2e%2e/%2e%2e/x.safetensors",
        "https://huggingface.co/ann/pic/blob/..%2f..%2fx/vae.safetensors",
        "hf.co/ann/pic/tree/..",
        "hf.co/ann/..",
        "hf://ann/pic@..",
        "hf.co/ann/pic/blob/main/a//b.gguf",
    ],
)
def test_addresses_that_lead_out_of_the_repository_are_none(text: str) -> None:
    with pytest.raises(InputError, match="is the address of no model"):
        parse_hub_source(text)


def test_a_file_is_known_by_its_header_and_then_downloaded_alone(
    files: FakeHub, models: Path, cache: Path
) -> None:
    spec = resolve(DREAMY, "v1")
    digest = sha256_of(models / "sd15.safetensors")
    assert (spec.name, spec.revision, spec.file_digest) == (DREAMY, "v1", digest)
    size = (models / "sd15.safetensors").stat().st_size
    model = ModelFiles(spec, offline=False)
    total, missing = model.size("float32")
    assert (total == pytest.approx(size, rel=0.2), missing) == (True, size)
    assert whole_files(files) == []
    events: list[Event] = []
    folder = model.download("float32", events.append)
    assert folder is not None
    [told] = [event for event in events if isinstance(event, Notice)]
    assert told.message.startswith(f"{DREAMY} takes ")
    assert "Its licence is dreamy-1.0. It goes to " in str(told.hint)
    assert len(whole_files(files)) == 1
    noted = json.loads((folder / "composition.json").read_text())
    assert {Path(each["file"]).read_bytes() for each in noted["files"].values()} == {
        (models / "sd15.safetensors").read_bytes()
    }
    offline = composed_model.resolve_with_parts(
        DREAMY, "v1", {}, offline=True, trust_remote_code=False
    )
    assert offline.file_digest == digest
    assert ModelFiles(offline, offline=True).size("float32")[1] == 0


def test_parts_have_files_and_revisions_and_tell_their_licence(
    files: FakeHub, models: Path, cache: Path
) -> None:
    base = str(models / "sd15")
    by_content = resolve(base, vae="ann/dreamy/vae.safetensors@v1").vae
    assert by_content == PartSource(
        "ann/dreamy/vae.safetensors@v1", sha256_of(models / "vae.safetensors")
    )
    spec = resolve(base, vae="ann/fine-vae@v1")
    assert spec.vae == PartSource("ann/fine-vae@v1")
    events: list[Event] = []
    ModelFiles(spec, offline=False).download("float32", events.append)
    hints = [str(event.hint) for event in events if isinstance(event, Notice)]
    assert hints and all(hint.startswith("Its licence is mit. It goes to ") for hint in hints)
    assert list(cache.glob("models--ann--fine-vae/refs/v1"))
    with pytest.raises(ModelError, match="ann/fine-vae has no such revision"):
        resolve(base, vae="ann/fine-vae@v2")


def test_an_id_has_the_content_of_a_file_and_not_its_revision() -> None:
    def identity(**values: object) -> str:
        made: ResolvedRequest = factories.request(**values)
        return made.identity()

    digest = "ab" * 32
    one = identity(model=DREAMY, revision="v1", model_digest=digest)
    assert one == identity(model="/here/file.safetensors", model_digest=digest)
    assert one != identity(model=DREAMY, revision="v1", model_digest="cd" * 32)
    assert identity(vae=PartSource("a/b/c.gguf@v1", digest)) == identity(
        vae=PartSource("c.gguf", digest)
    )


REFUSALS: list[tuple[str, type[T2IError], str]] = [
    ("ann/none/x.safetensors", ModelError, "There is no repository ann/none on the Hub, or it is"),
    ("ann/dreamy/x.safetensors", ModelError, "ann/dreamy has no file x.safetensors"),
    (f"{DREAMY}@v9", ModelError, "ann/dreamy has no such revision"),
    ("ann/dreamy/old.ckpt", ModelError, "ann/dreamy/old.ckpt is a pickle file"),
    ("bob/locked/x.safetensors", AccessError, "bob/locked is gated: its licence must be accepted"),
]


@pytest.mark.parametrize("field", ["model", "vae", "transformer"])
@pytest.mark.parametrize(("name", "kind", "said"), REFUSALS)
def test_what_cannot_be_had_is_told_as_of_a_model(
    field: str,
    name: str,
    kind: type[T2IError],
    said: str,
    files: FakeHub,
    models: Path,
    cache: Path,
) -> None:
    locked = Repo({"x.safetensors": (models / "vae.safetensors").read_bytes()})
    files.repos["bob/locked"] = locked
    # The list of a gated repository may be read, and its card.
    repository_file.find_file("bob/locked", "x.safetensors", revision=None, offline=False)
    repository_file._digest.cache_clear()
    locked.gated = True
    with pytest.raises(kind) as caught:
        if field == "model":
            resolve(*name.split("@"))
        else:
            resolve(str(models / "sd15"), **{field: name})
    assert caught.value.message.startswith(said)
    assert caught.value.hint
    assert "pickle" not in said or "`t2i models convert FILE`" in caught.value.hint
    assert str(cache.parent) not in f"{caught.value.message} {caught.value.hint}"
    assert whole_files(files) == []


def test_a_file_of_another_kind_is_refused_by_its_header(
    files: FakeHub, models: Path, cache: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        resolve("ann/dreamy/vae.safetensors")
    assert caught.value.message.startswith("ann/dreamy/vae.safetensors ")
    with pytest.raises(InputError, match="is a single file"):
        resolve(DREAMY, base="ann/dreamy/vae.safetensors")
    assert whole_files(files) == []


def test_a_disk_too_small_is_told_before(
    files: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 1000

    spec = resolve(DREAMY)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Full)
    with pytest.raises(StorageError, match=f"download of {DREAMY} needs .* 1.0 kB free"):
        ModelFiles(spec, offline=False).download("float32", lambda _: None)
    assert whole_files(files) == []


def test_a_disk_too_small_for_a_model_and_its_part_is_told_before_the_first(
    files: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelFiles(resolve(SD15, vae="ann/fine-vae"), offline=False)
    _, missing = model.size("float32")

    class Small:
        free = missing - 1

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Small)
    with pytest.raises(StorageError, match="download of sd15 needs .* free"):
        model.download("float32", lambda _: None)
    assert whole_files(files) == []


def test_the_header_of_a_long_file_is_read_in_steps(
    files: FakeHub, models: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header_files, "_BEGINNINGS", (64, 10**6))
    spec = resolve(DREAMY)
    assert spec.pipeline == "StableDiffusionPipeline"
    ranges = [s.range for s in files.requests if s.path.startswith("/cdn/")]
    assert ranges[0] == "bytes=0-63"
    assert len(ranges) == 2


def test_a_header_that_broke_off_is_read_anew(tmp_path: Path, models: Path) -> None:
    content = (models / "sd15.safetensors").read_bytes()
    header = tmp_path / "kept" / "dreamy.safetensors"

    def breaks(count: int) -> bytes:
        if count > 2**10:
            raise RemoteError("The download broke off.")
        return content[:count]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(header_files, "_BEGINNINGS", (64, 10**6))
        with pytest.raises(RemoteError):
            header_files.keep_header(header, len(content), breaks)
    assert list(header.parent.iterdir()) == []
    header_files.keep_header(header, len(content), lambda count: content[:count])
    assert read_checkpoint(header).family == "sd15"


@pytest.fixture
def command(t2i: T2I, files: FakeHub) -> Callable[..., str]:
    """Runs a command with the fake hub; its standard output."""

    def run(*arguments: str) -> str:
        done = t2i(*arguments, env=files.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_commands_take_a_file_of_a_repository(
    command: Callable[..., str], files: FakeHub, models: Path
) -> None:
    address = f"{files.url}/ann/dreamy/blob/v1/v1/dreamy.safetensors"
    shown = json.loads(command("models", "show", address, "--json"))
    assert (shown["file"], shown["family"]) == (DREAMY, "sd15")
    assert shown["sha256"] == sha256_of(models / "sd15.safetensors")
    assert whole_files(files) == []
    command("models", "add", "dreamy", address, "--steps", "7")
    planned = json.loads(command("generate", "x", "-m", "dreamy", "--dry-run", "--json"))
    [request] = planned["requests"]
    assert (request["model"], request["revision"], request["steps"]) == (DREAMY, "v1", 7)
    pulled = command("models", "pull", "ann/dreamy/vae.safetensors@v1").strip()
    assert Path(pulled).read_bytes() == (models / "vae.safetensors").read_bytes()
    assert command("models", "path", "ann/dreamy/vae.safetensors@v1").strip() == pulled


def test_a_file_alone_is_listed_and_removed(
    command: Callable[..., str], files: FakeHub, home: Path, t2i: T2I
) -> None:
    vae, fine = "ann/dreamy/vae.safetensors", "ann/fine-vae/diffusion_pytorch_model.safetensors"
    for name in (f"{vae}@v1", DREAMY, fine):
        command("models", "pull", name)
    # The cache is shared: a language model of another program is not listed.
    other = home / "hf/hub/models--bob--llm/snapshots/1"
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"model_type": "llama"}')
    (other / "model.safetensors").write_bytes(b"1234")
    listed = command("models", "list")
    assert "bob/llm" not in listed
    [row] = [line for line in listed.splitlines() if line.startswith("ann/dreamy ")]
    assert "partly, " in row and row.rstrip().endswith("v1/dreamy.safetensors, vae.safetensors")

    def records() -> dict[str, dict[str, object]]:
        lines = command("models", "list", "--json").splitlines()
        return {each["name"]: each for each in map(json.loads, lines)}

    found = records()["ann/dreamy"]
    assert (found["downloaded"], found["files"]) == (
        "partly",
        ["v1/dreamy.safetensors", "vae.safetensors"],
    )
    taken = int(str(found["disk_bytes"]))
    freed = json.loads(command("models", "remove", vae, "--yes", "--json"))["freed_bytes"]
    assert 0 < freed < taken
    assert records()["ann/dreamy"]["files"] == ["v1/dreamy.safetensors"]
    assert command("models", "path", DREAMY).strip()
    again = t2i("models", "remove", vae, "--yes", env=files.environment)
    assert again.returncode == 9
    assert f"{vae} is not downloaded." in again.stderr
    command("models", "remove", DREAMY, "--yes")
    assert not list((home / "hf/hub").glob("models--ann--dreamy"))
    command("models", "remove", "ann/fine-vae", "--yes")
    assert {"ann/dreamy", "ann/fine-vae"}.isdisjoint(records())
