"""The rate of a run: what loading and the first pass take is not in it."""

from t2i_cli.events import Downloading, Loading, RequestSent, Step
from t2i_cli.terminal.throughput import ThroughputMeter, format_progress

LOADING = Loading(model="m", device="cpu")


class Timeline:
    """A meter whose clock a test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.meter = ThroughputMeter(lambda: self.now)

    def load(self, seconds: float) -> None:
        """A model is loaded."""
        self.meter.event(LOADING)
        self.now += seconds

    def run_pass(self, *indices: int, first: float, rest: float, steps: int = 5) -> None:
        """A pass whose first step takes `first` seconds, and each other one `rest`."""
        for step in range(1, steps + 1):
            self.now += first if step == 1 else rest
            self.meter.event(Step(indices=indices, step=step, steps=steps))

    def save(self, *indices: int) -> None:
        """Images are saved."""
        for index in indices:
            self.meter.outcome(index)


def rate(line: Timeline) -> float | None:
    """The rate, rounded."""
    return None if line.meter.rate is None else round(line.meter.rate, 3)


def test_loading_and_the_first_pass_are_not_in_the_rate() -> None:
    line = Timeline()
    line.load(300)
    line.run_pass(0, 1, first=30, rest=1)
    line.save(0, 1)
    for member in range(2, 10, 2):
        line.run_pass(member, member + 1, first=1, rest=1)
        line.save(member, member + 1)
    assert rate(line) == 0.4, "two images every five seconds"


def test_after_the_first_pass_its_later_steps_give_an_estimate() -> None:
    line = Timeline()
    line.load(300)
    assert rate(line) is None
    line.run_pass(0, 1, first=30, rest=1)
    assert rate(line) is None
    line.save(0)
    assert rate(line) == 0.4
    line.save(1)
    assert rate(line) == 0.4


def test_images_of_the_first_pass_that_are_saved_late_do_not_count() -> None:
    line = Timeline()
    line.load(300)
    line.run_pass(0, 1, first=30, rest=1)
    line.run_pass(2, 3, first=1, rest=1)
    assert rate(line) == round(2 / 6.25, 3), "estimated when the second pass began"
    line.save(0, 1, 2, 3)
    line.run_pass(4, 5, first=1, rest=1)
    line.save(4, 5)
    # The clock began with the first step of the second pass.
    assert rate(line) == round(4 / 9, 3)


def test_each_model_is_loaded_and_warmed_outside_the_rate() -> None:
    line = Timeline()
    for model in range(3):
        line.meter.event(Downloading(model="m", done=1, total=1))
        line.load(60)
        for number in range(3):
            index = 3 * model + number
            line.run_pass(index, first=20 if number == 0 else 1, rest=1)
            line.save(index)
    assert rate(line) == 0.2


def test_calls_in_flight_are_measured_from_the_first_answer() -> None:
    line = Timeline()
    for index in range(4):
        line.meter.event(RequestSent(indices=(index,)))
    line.now += 60
    line.save(0, 1, 2, 3)
    for index in range(4, 12, 4):
        line.now += 2
        line.save(*range(index, index + 4))
    assert rate(line) == 2.0


def test_failures_count_as_images_do_and_instants_give_no_rate() -> None:
    line = Timeline()
    line.save(0, 1, 2)
    assert rate(line) is None
    line.now += 1
    line.save(3)
    assert rate(line) == 3.0


def test_what_is_left_of_a_pass_comes_from_its_steps() -> None:
    line = Timeline()
    assert line.meter.seconds_left([0]) is None
    line.load(60)
    line.run_pass(0, 1, first=30, rest=2, steps=10)
    line.save(0, 1)
    line.meter.event(Step(indices=(2, 3), step=1, steps=10))
    assert round(line.meter.seconds_left([2, 3]) or 0) == 20, "a pass, by the rate"
    line.now += 3
    line.meter.event(Step(indices=(2, 3), step=2, steps=10))
    assert line.meter.seconds_left([2, 3]) == 24
    line.now += 1
    assert line.meter.seconds_left([2, 3]) == 23
    line.now += 100
    assert line.meter.seconds_left([2, 3]) == 0


def test_progress_is_counts_rate_time_left_and_failures() -> None:
    assert format_progress(0, 30, 2.0) == "0 of 30"
    assert format_progress(3, 30, None) == "3 of 30"
    assert format_progress(10, 30, 2.0) == "10 of 30, 2.0 images/s, 10 s left"
    assert format_progress(2, 2000, 0.1, 1) == "2 of 2,000, 10.0 s an image, 5.5 h left, 1 failed"
