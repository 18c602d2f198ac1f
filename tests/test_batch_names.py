"""Names of a batch's files: what a template and a row may say, and what is refused."""

import pytest

from t2i_cli.batch import row_filenames
from t2i_cli.batch.rows import BatchRow
from t2i_cli.errors import InputError
from t2i_cli.output import filenames
from t2i_cli.prompts.entries import PromptProblem
from tests.factories import request


def row(index: int = 1, name: str | None = None, **changes: object) -> BatchRow:
    """A row at a line of its index."""
    asked = request(**changes)
    row_id = asked.identity(index)
    return BatchRow(index, row_id, index, asked, name, (), 0)


def assign(
    *rows: BatchRow,
    template: str = row_filenames.DEFAULT_NAME_TEMPLATE,
    format: str | None = None,
    owners: dict[str, str] | None = None,
) -> tuple[list[str], list[PromptProblem]]:
    """The names of rows, and the problems."""
    found, problems = row_filenames.assign_filenames(
        rows, template, format, owners or {}, {r.id for r in rows}
    )
    return [file for file, _ in found.values()], problems


def test_default_name_has_index_slug_and_seed() -> None:
    assert assign(row(7))[0] == ["00007-a-red-house-on-green-hills-42.png"]


def test_template_may_name_every_field_and_the_id() -> None:
    template = (
        "{id}/{model}-{revision}-{steps}-{guidance_scale}-{width}x{height}-{scheduler}"
        "-{negative_prompt}-{prompt:.5}.{ext}"
    )
    one = row()
    (name,), problems = assign(one, template=template, format="webp")
    assert problems == []
    assert name == (
        f"{one.id}/stable-diffusion-v1-5-stable-diffusion-v1-5-main-30-7.5-64x48"
        "-dpm++2m-karras-rain-A red.webp".replace(" ", "-")
    )


def test_row_gives_name_format_or_template() -> None:
    found, problems = row_filenames.assign_filenames(
        [row(1, "one"), row(2, "sub/two.JPG"), row(3, "{seed}-{index}.webp")],
        row_filenames.DEFAULT_NAME_TEMPLATE,
        "jpeg",
        {},
        {row(n).id for n in (1, 2, 3)},
    )
    assert problems == []
    assert list(found.values()) == [
        ("one.jpg", "jpeg"),
        ("sub/two.JPG", "jpeg"),
        ("42-3.webp", "webp"),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../a.png", "leaves the folder"),
        ("a/../../b.png", "leaves the folder"),
        ("/a.png", "absolute"),
        ("C:/a.png", "absolute"),
        ("C:a.png", "absolute"),
        ("\\\\server\\a.png", "absolute"),
        ("a\\b.png", "the character \\"),
        ("a?.png", "the character ?"),
        ("a\n.png", "U+000A"),
        ("a\u202egnp.png", "cannot be seen"),
        ("a//b.png", "empty"),
        ("./a.png", "empty"),
        ("a./b.png", "ends in a dot or space"),
        ("a /b.png", "ends in a dot or space"),
        (".t2i/a.png", "uses itself"),
        ("SHEET.png", "uses itself"),
        ("con.png", "name of a device"),
        ("sub/LPT1.x.png", "name of a device"),
        ("com¹.png", "name of a device"),
        ("sub/CONIN$", "name of a device"),
        ("x" * 252 + ".png", "has 256 bytes"),
        ("ab/" * 80 + "c.png", "at most 200"),
        ("a.gif", "unknown extension .gif"),
        ("{foo}.png", "unknown placeholder"),
        ("{.png", "no template"),
        ("", "empty"),
    ],
)
def test_bad_name_is_refused_at_its_line(name: str, message: str) -> None:
    found, problems = assign(row(1), row(2, name))
    assert [(p.line, p.field) for p in problems] == [(2, "name")]
    assert message in problems[0].message
    assert len(found) == 1


@pytest.mark.parametrize(
    ("template", "format", "message"),
    [
        ("{slug}.png", "jpeg", "--format jpeg contradicts the extension"),
        (row_filenames.DEFAULT_NAME_TEMPLATE, "gif", "The format 'gif' is unknown"),
        ("../{slug}", None, "leaves the folder"),
        ("/a/{slug}", None, "absolute"),
        ("{foo}", None, "unknown placeholder"),
        ("sheet.png", None, "uses itself"),
    ],
)
def test_template_that_no_row_is_to_blame_for_is_refused(
    template: str, format: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        row_filenames.check_template(template, format)


@pytest.mark.parametrize(
    "template", [row_filenames.DEFAULT_NAME_TEMPLATE, "{slug}.jpg", "a/{index:03d}", "x{{"]
)
def test_template_that_can_be_is_taken(template: str) -> None:
    row_filenames.check_template(template, "jpeg")


@pytest.mark.parametrize("second", ["a.png", "A.PNG", "a.png/b.png"])
def test_name_used_twice_is_refused(second: str) -> None:
    _, problems = assign(row(1, "a.png"), row(2, second))
    assert [(p.line, p.message) for p in problems] == [
        (2, f"{second!r} is taken by line 1 already.")
    ]
    _, problems = assign(row(1, "a.png/b.png"), row(2, "a.png"))
    assert [p.line for p in problems] == [2]


@pytest.mark.parametrize("name", ["a.png", "sub/a.PNG", "é" * 120 + ".png", "x" * 196 + ".png"])
def test_name_of_another_rows_picture_gets_a_part_of_the_id(name: str) -> None:
    one = row(1, name)
    key = filenames.normalised_name(name)
    [found], problems = assign(one, owners={key: "another"})
    assert problems == []
    assert found.rpartition(".")[0].endswith("-" + one.id[:8])
    assert found.startswith(name.rpartition(".")[0][:40])
    assert found.endswith(name[-4:])
    row_filenames.check_filename(found)
    assert len(found.encode()) <= 255
    assert assign(one, owners={key: one.id}) == ([name], [])


def test_webp_too_large_is_refused() -> None:
    _, problems = assign(row(1, width=16_384), format="webp")
    assert "WebP holds at most" in problems[0].message
