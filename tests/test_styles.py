"""Styles: AUTOMATIC1111's CSV file, and that a style is in a prompt once."""

import json
import threading
from pathlib import Path

import httpx2
import pytest

from t2i_cli.backend import GeneratedImage
from t2i_cli.batch.generate_command import generate_command
from t2i_cli.batch.options import BatchOptions
from t2i_cli.batch.rows import expand_rows
from t2i_cli.errors import InputError
from t2i_cli.models.request_resolution import build_request, resolve_request
from t2i_cli.prompts import readers
from t2i_cli.prompts.entries import PromptEntry
from t2i_cli.prompts.styles import StyleFile, expand_styles
from t2i_cli.worker import answers
from tests import backends, factories
from tests.conftest import T2I
from tests.fakes.serving import serving
from tests.fakes.stub_backend import StubBackend

TABLE = """name,prompt,negative_prompt
snowy,"{prompt} in snow, white",green
night,"at night,
with stars",
comma,"a, b",""
#comment,x,y
,,
twice,one,
twice,one,
twice,two,
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file as AUTOMATIC1111 writes it, with a byte-order mark."""
    path = tmp_path / "styles.csv"
    path.write_bytes(TABLE.replace("\n", "\r\n").encode("utf-8-sig"))
    return path


def expanded(file: Path, *style: str, **values: object) -> tuple[str, str | None]:
    request = build_request({"prompt": "a house", "style": style, **values})
    found = expand_styles(request, StyleFile(file))
    assert found.style == style
    return found.prompt, found.negative_prompt


def test_styles_are_merged_as_automatic1111_does(file: Path) -> None:
    assert expanded(file, "snowy") == ("a house in snow, white", "green")
    assert expanded(file, "night") == ("a house, at night,\nwith stars", None)
    assert expanded(file, "snowy", "comma", negative_prompt="rain") == (
        "a house in snow, white, a, b",
        "rain, green",
    )
    old = file.with_name("old.csv")
    old.write_text("name, text\nsnowy,in snow\n")
    assert expanded(old, "snowy") == ("a house, in snow", None)


@pytest.mark.parametrize(
    ("content", "style", "message"),
    [
        (TABLE, "snowi", "There is no style 'snowi' in .*; did you mean snowy?"),
        (TABLE, "xxxxx", "; there are snowy, night, comma, twice."),
        (TABLE, "twice", "stands twice in .*, in lines 8 and 10"),
        ("prompt,negative_prompt\na,b\n", "a", "have no column name"),
        ("name,negative_prompt\na,b\n", "a", "have no column prompt"),
        ("", "a", "have no column name"),
        ('name,prompt\na,"b', "a", "are no CSV"),
        ("name,prompt\na\n", "b", "there are a"),
        ("name,prompt\n\0,b\n", "b", "."),
        (None, "a", "Cannot read the styles"),
    ],
)
def test_what_is_wrong_with_styles_is_one_sentence(
    content: str | None, style: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "some.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=message):
        expanded(file, style)


def test_names_without_a_file_and_long_prompts_are_refused(file: Path) -> None:
    request = build_request({"prompt": "a", "style": ("snowy",)})
    with pytest.raises(InputError, match="There is no file of styles, and so no style 'snowy'"):
        expand_styles(request, None)
    with pytest.raises(InputError, match="at most 5,000"):
        expanded(file, "night", prompt="a" * 4_999)


def test_rows_name_styles_in_a_column(file: Path) -> None:
    read = [
        *readers.read_csv([b"prompt,style\n", b'a,"snowy, night"\n', b"b,\n", b"c,snowi\n"]),
        *readers.read_jsonl(
            [b'{"prompt": "d", "style": ["snowy"]}\n', b'{"prompt":"e","style":7}']
        ),
    ]
    entries = [one for one in read if isinstance(one, PromptEntry)]
    options = BatchOptions(styles=StyleFile(file))
    rows, problems = expand_rows(entries, options, StubBackend())
    assert [row.request.prompt for row in rows] == [
        "a in snow, white, at night,\nwith stars",
        "b",
        "d in snow, white",
    ]
    assert [(one.field, one.line) for one in problems] == [("style", 4)]
    assert [one.message for one in read if not isinstance(one, PromptEntry)] == [
        "style must be a list of names."
    ]
    # The id is that of the prompt, however it came to be.
    plain = {"prompt": "d in snow, white", "negative_prompt": "green"}
    same, _ = expand_rows([PromptEntry(1, plain)], BatchOptions(), StubBackend())
    assert same[0].id == rows[2].id


def test_a_server_has_the_styles_of_its_operator_and_a_client_its_own(file: Path) -> None:
    stub = StubBackend()
    with serving(stub) as server:
        server.engine.styles = StyleFile(file)
        model = httpx2.get(f"{server.url}/t2i/v1/model", timeout=60).json()
        assert model["styles"] == ["snowy", "night", "comma", "twice"]
        assert model["prompt_syntaxes"] == ["a1111", "compel"]
        assert (model["clip_skip"], model["prompt_2"]) == (True, False)
        body = {"prompt": "a", "style": "snowy, night", "response_format": "b64_json"}
        route = f"{server.url}/v1/images/generations"
        assert httpx2.post(route, json=body, timeout=60).status_code == 200
        assert stub.made[-1].prompt == "a in snow, white, at night,\nwith stars"
        wrong = httpx2.post(route, json=body | {"style": "/etc/passwd"}, timeout=60)
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "style")
        client = backends.chosen("http", url=f"{server.url}/v1")
        request = expand_styles(
            build_request({"prompt": "b", "style": ("snowy",)}), StyleFile(file)
        )
        settled = resolve_request(request, client.describe(request))
        [outcome] = client.run([settled], lambda _: None, threading.Event())
        client.close()
    assert stub.made[-1].prompt == "b in snow, white"
    assert isinstance(outcome, GeneratedImage)
    assert outcome.request.to_json()["style"] == ["snowy"]


def test_what_is_sent_on_or_made_again_has_a_style_once() -> None:
    request = factories.request(style=("snowy",), prompt="a in snow")
    body = answers.build_body([(0, request)], "png")
    assert "style" not in json.dumps(body)
    command = generate_command({"request": request.to_json() | {"prompt": "a in snow"}})
    assert command
    assert "--style" not in " ".join(command)


def test_an_image_records_the_whole_prompt_and_the_names(
    t2i: T2I, file: Path, tmp_path: Path
) -> None:
    command = ("generate", "a red house", "-m", "postcard", "-s", "1", "--steps", "1")
    done = t2i(*command, "--style", "snowy", "-o", "a.png", env={"T2I_STYLES": str(file)})
    assert done.returncode == 0, done.stderr
    told = json.loads(t2i("inspect", "a.png", "--json").stdout)["request"]
    assert told["prompt"] == "a red house in snow, white"
    assert (told["negative_prompt"], told["style"]) == ("green", ["snowy"])
    wrong = t2i(*command, "--style", "snowi", "--styles", str(file))
    assert wrong.returncode == 2
    assert "did you mean snowy?" in wrong.stderr
    assert [path.name for path in tmp_path.glob("*.png")] == ["a.png"]


def test_a_server_refuses_styles_that_it_cannot_read(t2i: T2I, file: Path) -> None:
    done = t2i("serve", "-m", "postcard", "--port", "0", "--styles", str(file) + "x")
    assert done.returncode == 2
    assert "Cannot read the styles in" in done.stderr
