"""Files that appear whole or not at all: every way in which a write can go wrong."""

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from t2i_cli.errors import InputError, StorageError, Terminated
from t2i_cli.image_formats import ImageFormat
from t2i_cli.output import image_writer, metadata
from t2i_cli.output.image_writer import ImageWriter
from tests.factories import LOCK, generated, picture, request

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def files(folder: Path) -> list[str]:
    """Everything under a folder."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "t2i-test", str(folder)]
    if not ROOT or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_saves_the_image_and_tells_all_about_it(tmp_path: Path, format: ImageFormat) -> None:
    path = tmp_path / "new" / "er" / f"a.{format}"
    files_of = ImageWriter([path], format)
    files_of.prepare()
    saved = files_of.save(generated(seed=7))
    files_of.close()
    content = path.read_bytes()
    assert content == metadata.embed_metadata(picture(), request(seed=7), LOCK, format)
    assert files(tmp_path) == ["new", "new/er", f"new/er/a.{format}"]
    told = json.loads(json.dumps(saved.to_json()))
    assert told == {
        "path": str(path),
        "format": format,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "seconds": 1.25,
        "prompt": "A red house, on green hills",
        "negative_prompt": "rain",
        "model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "revision": LOCK.revision,
        "seed": 7,
        "steps": 30,
        "guidance_scale": 7.5,
        "width": 64,
        "height": 48,
        "scheduler": "dpm++2m-karras",
        "backend": "local",
        "pipeline": "StableDiffusionPipeline",
        "device": "cuda:0",
        "dtype": "float16",
        "batch_size": 1,
        "measures": ["vae_tiling"],
        "notes": [],
        "libraries": {"diffusers": "0.42.1", "torch": "2.13.0"},
    }


def test_each_image_goes_to_the_path_of_its_request(tmp_path: Path) -> None:
    files_of = ImageWriter([tmp_path / "0.png", tmp_path / "1.png"], "png")
    files_of.prepare()
    assert [files_of.save(generated(i)).path for i in (1, 0)] == [
        tmp_path / "1.png",
        tmp_path / "0.png",
    ]


def test_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        ImageWriter([tmp_path / "a.png"], "png").save(generated())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o640


def test_existing_output_is_refused_before_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("precious")
    with pytest.raises(InputError, match="exists") as error:
        ImageWriter([path], "png").prepare()
    assert error.value.hint == "--overwrite replaces it."
    assert path.read_text() == "precious"


def test_dangling_link_is_an_existing_output(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="exists"):
        ImageWriter([tmp_path / "a.png"], "png").prepare()


def test_overwrite_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")
    files_of = ImageWriter([path], "png", overwrite=True)
    files_of.prepare()
    assert path.read_text() == "old"
    files_of.save(generated())
    assert metadata.read_metadata(path).request["seed"] == 42
    assert files(tmp_path) == ["a.png"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_places_that_can_be_no_file_are_refused(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in (
        ("folder.png", "is a folder"),
        ("file/a.png", "is a file"),
        ("file/b/a.png", "is a file"),
        ("pipe.png", "device or pipe" if overwrite else "exists"),
        ("x" * 300 + ".png", "name too long"),
        ("x" * 300 + "/a.png", "name too long"),
    ):
        before = files(tmp_path)
        with pytest.raises(InputError, match=f"(?i){message}"):
            ImageWriter([tmp_path / name], "png", overwrite=overwrite).prepare()
        assert files(tmp_path) == before


def test_check_changes_nothing(tmp_path: Path) -> None:
    ImageWriter([tmp_path / "a" / "b" / "c.png"], "png").check()
    assert files(tmp_path) == []


def test_folders_that_stayed_empty_are_removed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    files_of = ImageWriter([tmp_path / "there/new/er/a.png", tmp_path / "full/b.png"], "png")
    files_of.prepare()
    files_of.save(generated(1))
    files_of.close()
    files_of.close()
    assert files(tmp_path) == ["full", "full/b.png", "there"]


def test_a_folder_that_another_run_removed_is_made_again(tmp_path: Path) -> None:
    files_of = ImageWriter([tmp_path / "new/a.png"], "png")
    files_of.prepare()
    (tmp_path / "new").rmdir()
    files_of.save(generated())
    assert files(tmp_path) == ["new", "new/a.png"]


def counting(function: Callable[..., object], name: str, calls: list[str]) -> object:
    def counted(*arguments: object, **named: object) -> object:
        calls.append(name)
        return function(*arguments, **named)

    return counted


def test_a_file_in_a_deep_folder_costs_no_more_than_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Thousands of images a minute come from a cluster, and one process saves them.
    deep = tmp_path.joinpath(*"abcdefghij")
    deep.mkdir(parents=True)
    looks: list[int] = []
    for folder in (tmp_path, deep):
        writer = ImageWriter([folder / "0.png"], "png", overwrite=True)
        image, calls = generated(), list[str]()
        with monkeypatch.context() as patched:
            for name in ("stat", "lstat", "unlink"):
                found = getattr(os, name)
                patched.setattr(os, name, counting(found, name, calls))
            writer.save(image)
        looks.append(calls.count("stat") + calls.count("lstat"))
        assert "unlink" not in calls
    assert looks[0] == looks[1] <= 2


def test_folder_without_permission_is_refused() -> None:
    # pytest's own folders are closed to the other user that root becomes here.
    with TemporaryDirectory() as name:
        os.chmod(name, 0o555)  # noqa: S103
        become = "os.setuid(65534)\n" if ROOT else ""
        done = in_process(f"{become}prepare(Path({name!r}) / 'new/a.png')")
        assert done == "InputError: Cannot write to the folder"
        assert files(Path(name)) == []


def test_read_only_file_system_is_refused_to_root(mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    with pytest.raises(InputError, match="Read-only file system"):
        ImageWriter([mounted / "a.png"], "png").prepare()


def in_process(code: str) -> str:
    """What prepare() or save() in a process of its own says, up to the path."""
    setup = (
        "import os, resource, signal, sys\nfrom pathlib import Path\n"
        "from t2i_cli.errors import T2IError\nfrom t2i_cli.output.image_writer import ImageWriter\n"
        "from tests.factories import generated\n"
        "def prepare(path): ImageWriter([path], 'png').prepare()\n"
        "def save(path, **options): ImageWriter([path], 'png', **options).save(generated())\n"
        "try:\n"
    )
    body = "".join(f"    {line}\n" for line in code.splitlines())
    end = "except T2IError as error:\n    print(f'{type(error).__name__}: {error}')\n"
    done = subprocess.run(
        [sys.executable, "-c", setup + body + end], capture_output=True, text=True, check=True
    )
    return done.stdout.partition(" '")[0].strip()


@pytest.mark.parametrize("overwrite", [False, True])
def test_file_size_limit_leaves_nothing(tmp_path: Path, overwrite: bool) -> None:
    path = tmp_path / "a.png"
    if overwrite:
        path.write_text("old")
    code = (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        f"save(Path({str(path)!r}), overwrite={overwrite})"
    )
    assert in_process(code) == "StorageError: Cannot write"
    assert files(tmp_path) == (["a.png"] if overwrite else [])
    assert not overwrite or path.read_text() == "old"


def test_full_disk_is_a_storage_error_and_leaves_nothing(mounted: Path) -> None:
    files_of = ImageWriter([mounted / "a.png"], "png")
    files_of.prepare()
    with pytest.raises(OSError, match="No space left"):
        (mounted / "filler").write_bytes(bytes(100_000))
    with pytest.raises(StorageError, match="No space left on device") as error:
        files_of.save(generated())
    assert error.value.exit_code == 11
    assert files(mounted) == ["filler"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EDQUOT])
def test_failing_storage_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fsync(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match=os.strerror(code)):
        ImageWriter([tmp_path / "a.png"], "png").save(generated())
    assert files(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "link"])
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, Terminated])
def test_interrupt_leaves_no_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    interrupt: type[BaseException],
) -> None:
    def raises(*_: object) -> None:
        raise interrupt

    monkeypatch.setattr(os, call, raises)
    files_of = ImageWriter([tmp_path / "new/a.png"], "png")
    files_of.prepare()
    with pytest.raises(interrupt):
        files_of.save(generated())
    files_of.close()
    assert files(tmp_path) == []


def test_interrupt_of_the_check_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "close", raises)
    with pytest.raises(KeyboardInterrupt):
        ImageWriter([tmp_path / "new/a.png"], "png").prepare()
    assert files(tmp_path) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_another_run_took_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        without_links(monkeypatch)
    path = tmp_path / "a.png"
    files_of = ImageWriter([path], "png")
    files_of.prepare()
    path.write_text("theirs")
    with pytest.raises(InputError, match="exists"):
        files_of.save(generated())
    assert path.read_text() == "theirs"
    assert files(tmp_path) == ["a.png"]


def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file system be FAT, on which link(2) fails so."""

    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)


def test_file_system_without_links_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch)
    ImageWriter([tmp_path / "a.png"], "png").save(generated())
    assert metadata.read_metadata(tmp_path / "a.png").request["seed"] == 42
    assert files(tmp_path) == ["a.png"]


def test_file_system_without_links_keeps_no_empty_file_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch)

    def replace(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        ImageWriter([tmp_path / "a.png"], "png").save(generated())
    assert files(tmp_path) == []


def test_of_many_runs_with_one_name_one_wins(tmp_path: Path) -> None:
    """Eight processes save 20 names at once: each name is won once, and is a whole image."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom t2i_cli.errors import InputError\n"
        "from t2i_cli.output.image_writer import ImageWriter\n"
        "from tests.factories import generated\n"
        "paths = [Path(sys.argv[1]) / f'{n}.png' for n in range(20)]\n"
        "sink, won = ImageWriter(paths, 'png'), 0\n"
        "sys.stdin.read()\n"
        "for n in range(20):\n"
        "    try:\n        sink.save(generated(n, seed=int(sys.argv[2])))\n        won += 1\n"
        "    except InputError:\n        pass\n"
        "print(won)"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(8)
    ]
    won = [int(run.communicate(timeout=60)[0]) for run in runs]
    assert sum(won) == 20
    assert files(tmp_path) == sorted(f"{n}.png" for n in range(20))
    winners = [metadata.read_metadata(path).request["seed"] for path in tmp_path.iterdir()]
    assert sorted(winners.count(seed) for seed in range(8)) == sorted(won)


def test_standard_output_gets_the_bytes(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    files_of = ImageWriter([None], "webp")
    files_of.prepare()
    saved = files_of.save(generated())
    assert capfdbinary.readouterr().out == metadata.embed_metadata(
        picture(), request(), LOCK, "webp"
    )
    assert saved.to_json()["path"] is None


def test_closed_standard_output_stays_a_broken_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb", buffering=0) as stream:
        monkeypatch.setattr(image_writer, "stdout_bytes", lambda: stream)
        with pytest.raises(BrokenPipeError):
            ImageWriter([None], "png").save(generated())


def test_full_device_under_standard_output_is_a_storage_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open("/dev/full", "wb", buffering=0) as stream:
        monkeypatch.setattr(image_writer, "stdout_bytes", lambda: stream)
        with pytest.raises(StorageError, match="standard output: No space left"):
            ImageWriter([None], "png").save(generated())
