"""Notes on prompts: words that are cut off, and words that postcard never learnt."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from t2i_cli import postcard
from t2i_cli.backends.local import LocalBackend, LocalOptions, prompt_warnings
from t2i_cli.events import Event, Notice
from t2i_cli.models.libraries import LibraryObject
from tests import tiny_models
from tests.test_local_backend import ask, make


class Loaded:
    """What `text.notes` looks at of a loaded model."""

    def __init__(
        self, components: dict[str, LibraryObject], limit: int, folder: Path | None
    ) -> None:
        def call(prompt: str, max_sequence_length: int = limit) -> None:
            pass

        self.pipe = SimpleNamespace(components=components, __call__=call)
        self.spec = SimpleNamespace(folder=folder, adapters="files", adapter_folder=None)


def notes(
    *tokenizers: LibraryObject, prompt: str, limit: int = 512, folder: Path | None = None
) -> str:
    components = {f"tokenizer_{number}": t for number, t in enumerate(tokenizers)}
    loaded: LibraryObject = Loaded(components | {"vae": object()}, limit, folder)
    text = prompt_warnings.PromptText(prompt, most=limit)
    return " ".join(note.text for note in prompt_warnings.prompt_warnings(loaded, text))


@pytest.fixture(scope="module")
def clip() -> LibraryObject:
    return tiny_models.clip_tokenizer()


@pytest.fixture(scope="module")
def t5() -> LibraryObject:
    return tiny_models.t5_tokenizer()


def test_a_prompt_that_fits_needs_no_note(clip: LibraryObject) -> None:
    assert notes(clip, prompt="a red house " * 5) == ""


def test_the_words_that_clip_cuts_are_named(clip: LibraryObject) -> None:
    prompt = "red " * (clip.model_max_length - 2)
    assert notes(clip, prompt=prompt) == ""
    said = notes(clip, prompt=f"{prompt} and two small stars")
    most = clip.model_max_length - 2
    more = len(clip("and two small stars", add_special_tokens=False)["input_ids"])
    assert f"which reads {most} of its {most + more} tokens, and does not read: and two" in said
    assert said.endswith("does not read: and two small stars")


def test_a_word_that_is_read_in_part_is_cut(clip: LibraryObject) -> None:
    prompt = "red " * (clip.model_max_length - 3) + "xyzzyplugh star"
    assert notes(clip, prompt=prompt).endswith("does not read: xyzzyplugh star")


def test_many_cut_words_are_counted(clip: LibraryObject) -> None:
    said = notes(clip, prompt="red " * (clip.model_max_length - 2) + "blue " * 20)
    assert said.endswith("blue " * 12 + "… (8 more)")


def test_the_encoder_that_reads_most_decides(clip: LibraryObject, t5: LibraryObject) -> None:
    prompt = "red " * clip.model_max_length
    assert notes(clip, prompt=prompt) != ""
    assert notes(clip, t5, prompt=prompt) == ""


def test_the_pipelines_own_limit_holds_for_other_encoders(t5: LibraryObject) -> None:
    assert notes(t5, prompt="ab cd ef", limit=6) != ""
    assert notes(t5, prompt="ab cd ef", limit=5).endswith("does not read: ef")
    assert notes(t5, prompt="ab cd ef", limit=7) == ""


def test_an_instruction_takes_tokens_of_the_limit(t5: LibraryObject) -> None:
    pipe = type("Lumina2Pipeline", (), {"components": {"tokenizer": t5}})()
    loaded: LibraryObject = SimpleNamespace(
        pipe=pipe, spec=SimpleNamespace(folder=None, adapters="files", adapter_folder=None)
    )

    def said(instruction: str) -> str:
        text = prompt_warnings.PromptText("ab cd ef", instruction, most=7)
        return " ".join(note.text for note in prompt_warnings.prompt_warnings(loaded, text))

    assert said("") == ""
    assert "reads 4 of its 6 tokens, and does not read: ef" in said("of ")
    assert "reads 0 of its 6 tokens, and does not read: ab cd ef" in said("an instruction ")


def test_postcard_names_the_words_it_does_not_know(clip: LibraryObject) -> None:
    said = notes(clip, prompt="A red Zeppelin, over 7 hills: zeppelin", folder=postcard.FOLDER)
    assert said.startswith("postcard does not know: zeppelin. ")
    assert "`t2i models show postcard`" in said
    assert notes(clip, prompt="a red zeppelin") == ""


NOTHING = "The model reads nothing of the prompt"


@pytest.mark.parametrize("prompt", ["🌟🌟", "!!!", "   ", "123 456", "日本", "«—»"])
def test_a_prompt_of_which_postcard_reads_nothing_is_noted(
    clip: LibraryObject, prompt: str
) -> None:
    said = notes(clip, prompt=prompt, folder=postcard.FOLDER)
    assert said.startswith(NOTHING)
    assert NOTHING not in notes(clip, prompt=f"{prompt} a star", folder=postcard.FOLDER)


def test_an_encoder_that_has_no_token_for_the_prompt_reads_nothing(
    clip: LibraryObject, t5: LibraryObject
) -> None:
    for prompt in ("🌟🌟", "   ", "日本"):
        assert notes(t5, prompt=prompt).startswith(NOTHING)
        assert NOTHING not in notes(t5, prompt=f"{prompt} ab")
    # CLIP spells what it has no word for in bytes.
    assert NOTHING not in notes(clip, prompt="🌟🌟")
    assert NOTHING not in notes(t5, clip, prompt="🌟🌟")
    assert notes(t5, clip, prompt="   ").startswith(NOTHING)
    assert notes(prompt="🌟🌟") == ""


def test_notes_are_told_once_a_prompt() -> None:
    backend = LocalBackend(LocalOptions())
    events: list[Event] = []
    zeppelin = ask(backend, prompt="a red zeppelin", steps=1)
    known = ask(backend, prompt="a red star", steps=1)
    make(backend, known, zeppelin, zeppelin, events=events)
    [note] = [event for event in events if isinstance(event, Notice)]
    assert note.indices == (1, 2)
