"""Images are saved on threads while the next are made; outcomes come in the backend's order."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from t2i_cli.backend import Failure, GeneratedImage
from t2i_cli.driver import generate_and_save
from t2i_cli.errors import InternalError, ModelError, StorageError
from t2i_cli.events import Event
from t2i_cli.output.image_writer import ImageWriter, SavedImage
from t2i_cli.request import ResolvedRequest
from t2i_cli.saver_threads import SAVER_THREADS, Outcome, SaveImage, SaverThreads
from tests.fakes.stub_backend import StubBackend, painted

PATIENCE = 20


def requests(number: int) -> list[ResolvedRequest]:
    common = {"negative_prompt": None, "model": "postcard", "revision": None, "steps": 1}
    size = {"guidance_scale": 4.0, "width": 16, "height": 16, "scheduler": None}
    return [
        ResolvedRequest(prompt=f"number {seed}", seed=seed, **common, **size)  # type: ignore[arg-type]
        for seed in range(number)
    ]


class Report:
    """Outcomes as they are told, and a save that the test holds back."""

    def __init__(self, folder: Path, number: int) -> None:
        self.outcomes: list[Outcome] = []
        self.raised: list[BaseException] = []
        self.writer = ImageWriter([folder / f"{n}.png" for n in range(number)], "png")

    @property
    def told(self) -> list[int]:
        return [outcome.index for outcome in self.outcomes]

    def savers(self, save: SaveImage, threads: int = SAVER_THREADS) -> SaverThreads:
        return SaverThreads(save, self.outcomes.append, self.raised.append, threads)


def until(condition: "threading.Event") -> None:
    assert condition.wait(PATIENCE)


def test_a_slow_save_is_told_before_quick_ones_that_were_made_later(tmp_path: Path) -> None:
    report, slow = Report(tmp_path, 4), threading.Event()
    done: list[int] = []

    def save(generated: GeneratedImage) -> SavedImage:
        if generated.index == 0:
            until(slow)
        saved = report.writer.save(generated)
        done.append(generated.index)
        return saved

    savers = report.savers(save)
    made = [painted(index, request) for index, request in enumerate(requests(4))]
    for image in made[:3]:
        savers.submit(image)
    savers.submit(Failure(index=3, request=made[3].request, error=ModelError("no")))
    while sorted(done) != [1, 2]:
        time.sleep(0.01)
    assert report.told == []
    slow.set()
    savers.close()
    assert report.told == [0, 1, 2, 3]
    assert [isinstance(outcome, Failure) for outcome in report.outcomes] == [False] * 3 + [True]


def test_what_is_in_hand_is_bounded(tmp_path: Path) -> None:
    report, go = Report(tmp_path, 9), threading.Event()
    submitted: list[int] = []

    def save(generated: GeneratedImage) -> SavedImage:
        until(go)
        return report.writer.save(generated)

    savers = report.savers(save, threads=2)

    def submit_all() -> None:
        for index, request in enumerate(requests(9)):
            savers.submit(painted(index, request))
            submitted.append(index)

    maker = threading.Thread(target=submit_all)
    maker.start()
    while len(submitted) < 4:
        time.sleep(0.01)
    time.sleep(0.1)
    assert submitted == [0, 1, 2, 3]
    go.set()
    maker.join(PATIENCE)
    savers.close()
    assert report.told == list(range(9))


def test_a_failed_save_is_that_images_failure_and_memory_is_the_runs(tmp_path: Path) -> None:
    report = Report(tmp_path, 4)
    errors = [StorageError("full"), ZeroDivisionError("bug"), MemoryError(), None]

    def save(generated: GeneratedImage) -> SavedImage:
        if error := errors[generated.index]:
            raise error
        return report.writer.save(generated)

    savers = report.savers(save)
    for index, request in enumerate(requests(4)):
        savers.submit(painted(index, request))
    savers.close()
    assert report.told == [0, 1, 3]
    kinds = [type(o.error) for o in report.outcomes if isinstance(o, Failure)]
    assert kinds == [StorageError, InternalError]
    assert [type(error) for error in report.raised] == [MemoryError]


def test_saves_given_up_keep_no_other_from_being_told(tmp_path: Path) -> None:
    report, go, both = Report(tmp_path, 4), threading.Event(), threading.Barrier(3)

    def save(generated: GeneratedImage) -> SavedImage:
        both.wait(PATIENCE)
        until(go)
        return report.writer.save(generated)

    savers = report.savers(save, threads=2)
    for index, request in enumerate(requests(4)):
        savers.submit(painted(index, request))
    both.wait(PATIENCE)
    threading.Timer(0.5, go.set).start()
    savers.close(cancel=True)
    assert report.told == [0, 1], "those that had begun"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png"]


class _Interrupted(StubBackend):
    """Ctrl-C arrives when the third image is denoised."""

    def _denoise(self, members: Sequence[int], on_event: object) -> None:
        if members[0] == 2:
            raise KeyboardInterrupt


def test_ctrl_c_keeps_and_tells_what_is_being_saved(tmp_path: Path) -> None:
    report = Report(tmp_path, 4)

    def save(generated: GeneratedImage) -> SavedImage:
        time.sleep(0.2)
        return report.writer.save(generated)

    with pytest.raises(KeyboardInterrupt):
        generate_and_save(
            requests(4), _Interrupted(), save, report.outcomes.append, lambda event: None
        )
    assert report.told == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png"]


def test_what_telling_raises_ends_the_run(tmp_path: Path) -> None:
    report, backend = Report(tmp_path, 9), StubBackend(pause=0.05)

    def tell(outcome: Outcome) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        generate_and_save(requests(9), backend, report.writer.save, tell, lambda event: None)
    assert len(backend.made) < 9


def test_events_and_outcomes_are_never_told_at_once(tmp_path: Path) -> None:
    report, inside = Report(tmp_path, 20), threading.Lock()
    alone: list[bool] = []

    def tell(what: Outcome | Event) -> None:
        alone.append(inside.acquire(blocking=False))
        time.sleep(0.002)
        inside.release()

    generate_and_save(requests(20), StubBackend(steps=True), report.writer.save, tell, tell)
    assert alone == [True] * 60
