"""The words that postcard reads for a prompt: plurals, spellings, numbers."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i_cli import postcard
from t2i_cli.backend import GeneratedImage
from t2i_cli.backends.local import LocalBackend, LocalOptions
from t2i_cli.events import Event, Notice
from t2i_cli.postcard import vocabulary
from t2i_cli.postcard.wording import Wording, reword
from tests.test_local_backend import ask, make
from training import captions, prompt_adherence, scenes

TWO = "a red circle and a red circle on white"


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("two red circles on white", TWO),
        ("2 Red Circles  on white", TWO),
        ("the two red circles on white", TWO),
        ("a pair of red circles on white", TWO),
        ("red circles on white", TWO),
        ("one big red disk", "a big red disc"),
        ("red and blue hearts", "a red heart and a blue heart"),
        ("two orange rhombi", "an orange rhombus and an orange rhombus"),
        ("a snow man on a hill at midday", "a snowman on a hills at noon"),
        ("clouds, a mountain", "clouds, a mountains"),
    ],
)
def test_a_prompt_is_read_in_known_words(prompt: str, read: str) -> None:
    assert reword(prompt) == Wording(read, ())


@pytest.mark.parametrize(
    ("prompt", "read", "change"),
    [
        ("a gray square", "a black square", "gray as black"),
        ("a Grey square", "a black square", "grey as black"),
        ("three red stars", "a red star and a red star", "three red stars as two"),
        ("99 red stars", "a red star and a red star", "99 red stars as two"),
        ("many circles", "a circle and a circle", "many circles as two"),
        ("two stars and a heart", "a star and a heart", "two stars as one"),
        ("two houses on hills", "a house on hills", "two houses as one"),
        ("cacti in the desert", "a cactus in the desert", "cacti as one"),
    ],
)
def test_what_is_read_as_something_else_is_told(prompt: str, read: str, change: str) -> None:
    assert reword(prompt) == Wording(read, (change,))


@pytest.mark.parametrize("prompt", ["a Zeppelin", "0 stars", "", "🎈", "a snowman, STARS  above"])
def test_words_that_are_not_understood_are_left(prompt: str) -> None:
    read = reword(prompt)
    assert " ".join(read.prompt.split()).lower() == " ".join(prompt.split()).lower()
    assert read.changes == ()


@given(st.randoms(use_true_random=False), st.sampled_from(["one", "two", "landscape"]))
def test_every_prompt_of_known_words_is_read_as_it_is(rng: random.Random, kind: str) -> None:
    caption = captions.caption(scenes.sample(rng, kind), rng)
    assert reword(caption) == Wording(caption, ())


@given(st.lists(st.sampled_from(["two", "red", "stars", "é", "cacti", "9", "a", "and", "grey"])))
def test_rewording_ends_and_is_stable(words: list[str]) -> None:
    read = reword(" ".join(words)).prompt
    assert reword(read).prompt == read


def test_two_red_circles_are_drawn() -> None:
    backend = LocalBackend(LocalOptions())
    events: list[Event] = []
    rows = [ask(backend, prompt=text, steps=20) for text in ("two red circles on white", TWO)]
    plural, singular = make(backend, *rows, events=events)
    assert isinstance(plural, GeneratedImage)
    assert isinstance(singular, GeneratedImage)
    assert not [event for event in events if isinstance(event, Notice)]
    assert plural.image.tobytes() == singular.image.tobytes()
    assert prompt_adherence.grade_image(plural.image, TWO).passed
    assert plural.request.prompt == "two red circles on white"


def test_the_words_of_the_rules_are_those_of_the_model() -> None:
    from t2i_cli.postcard import wording

    said = {*wording._SHAPES, *wording._OBJECTS, *wording._NEAREST.values()}
    assert said <= postcard.words()
    assert not {*wording._NEAREST, *wording._NUMBERS} & postcard.words()
    assert all(reword(example) == Wording(example, ()) for example in vocabulary.EXAMPLES)
