"""How many images share a pass, without a model."""

import pytest

from t2i_cli.backends.local.batch_size import BatchSizeTuner, are_independent, dependence_reason


def pipeline(name: str, module: str) -> type:
    return type(name, (), {"__module__": module})


def test_only_known_pipelines_of_diffusers_share_passes() -> None:
    assert are_independent(pipeline("FluxPipeline", "diffusers.pipelines.flux"))
    assert not are_independent(pipeline("FluxPipeline", "my_diffusers.flux"))
    assert not are_independent(pipeline("OtherPipeline", "diffusers.pipelines.other"))
    assert dependence_reason(pipeline("OtherPipeline", "x")) == (
        "Images of a OtherPipeline may change each other in a pass, so each is made alone."
    )


def test_no_pass_is_larger_than_what_is_left_or_fits() -> None:
    tuner = BatchSizeTuner(8)
    assert [
        tuner.next_size(left, limit) for left, limit in [(3, None), (3, 5), (9, 5), (9, 9)]
    ] == [
        3,
        3,
        5,
        8,
    ]


def test_a_size_that_was_asked_for_stays() -> None:
    tuner = BatchSizeTuner(2)
    for _ in range(4):
        tuner.record(2, 1.0)
        assert tuner.next_size(99, None) == 2


def test_two_at_most_are_compared_with_one() -> None:
    tuner = BatchSizeTuner(None, limit=2)
    for _ in range(2):
        tuner.record(2, 1.0)
    assert tuner.next_size(99, None) == 1
    tuner.record(1, 0.4)
    taken = []
    for _ in range(4):  # each is looked at twice, and the quicker one stays
        taken.append(tuner.next_size(99, None))
        tuner.record(taken[-1], 9.0)
    assert taken == [1, 2, 1, 1]


def test_a_pass_of_another_size_teaches_nothing() -> None:
    tuner = BatchSizeTuner(None)
    tuner.record(2, 1.0)
    tuner.record(2, 1.0)
    assert tuner.next_size(99, None) == 4
    tuner.record(3, 0.001)  # the last pass of a run
    assert tuner.next_size(99, None) == 4


@pytest.mark.parametrize(("seconds", "found"), [(0.192, 4), (0.193, 2), (0.4, 2)])
def test_a_larger_size_has_to_be_four_percent_quicker(seconds: float, found: int) -> None:
    tuner = BatchSizeTuner(None, limit=4)
    tuner.record(2, 9.0)
    tuner.record(2, 0.1)
    tuner.record(4, seconds)
    for _ in range(6):  # with no quicker pass of any size
        tuner.record(tuner.next_size(99, None), 9.0)
    assert tuner.next_size(99, None) == found


def test_a_pass_may_take_no_time_at_all() -> None:
    tuner = BatchSizeTuner(None)
    for _ in range(2):
        tuner.record(2, 0.0)
    assert tuner.next_size(99, None) == 4
