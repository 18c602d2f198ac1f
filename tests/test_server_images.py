"""Images behind links: unguessable, bounded, and gone after a while."""

import pytest

from t2i_cli.server.image_store import ImageStore


class Clock:
    """Seconds that pass when they are told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_was_put_is_there(clock: Clock) -> None:
    store = ImageStore(lifetime=60, clock=clock)
    name = store.put(b"image", "jpeg")
    assert name.endswith(".jpg")
    clock.now += 59
    found = store.get(name)
    assert found is not None
    stored, left = found
    assert (stored.data, stored.format, left) == (b"image", "jpeg", 1)


def test_it_expires(clock: Clock) -> None:
    store = ImageStore(lifetime=60, clock=clock)
    first = store.put(b"first", "png")
    clock.now += 30
    second = store.put(b"second", "png")
    clock.now += 30
    assert store.get(first) is None
    assert store.get(second) is not None


def test_the_oldest_go_where_room_is_short(clock: Clock) -> None:
    store = ImageStore(max_bytes=10, clock=clock)
    names = [store.put(bytes(4), "png") for _ in range(5)]
    assert [store.get(name) is not None for name in names] == [False, False, False, True, True]


def test_an_image_larger_than_all_room_is_alone(clock: Clock) -> None:
    store = ImageStore(max_bytes=10, clock=clock)
    small, large = store.put(bytes(4), "png"), store.put(bytes(40), "png")
    assert store.get(small) is None
    assert store.get(large) is not None
    store.put(bytes(4), "png")
    assert store.get(large) is None


def test_names_cannot_be_guessed(clock: Clock) -> None:
    store = ImageStore(clock=clock)
    names = {store.put(b"the same image", "webp") for _ in range(100)}
    assert len(names) == 100
    # 256 bits in base64 are 43 characters.
    assert {len(name) for name in names} == {43 + len(".webp")}
    assert store.get("guess.webp") is None
