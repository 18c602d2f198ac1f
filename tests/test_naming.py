"""Paths from `--output` and `--format`."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i_cli.errors import InputError
from t2i_cli.output import filenames
from tests.factories import request


def paths(output: str | None, format: str | None = None, **changes: object) -> list[Path | None]:
    return filenames.output_paths(filenames.parse_output(output, format), [request(**changes)])


@pytest.mark.parametrize(
    ("output", "format", "expected"),
    [
        (None, None, "a-red-house-on-green-hills-42.png"),
        (None, "jpg", "a-red-house-on-green-hills-42.jpg"),
        (None, "jpeg", "a-red-house-on-green-hills-42.jpg"),
        (None, "WEBP", "a-red-house-on-green-hills-42.webp"),
        ("cat.png", None, "cat.png"),
        ("./a/b/cat.JPEG", None, "a/b/cat.JPEG"),
        ("cat.jpg", "jpeg", "cat.jpg"),
        ("cat", "png", "cat"),
        ("out/", None, "out/a-red-house-on-green-hills-42.png"),
        ("out/", "webp", "out/a-red-house-on-green-hills-42.webp"),
        ("{model}/{seed}.webp", None, "stable-diffusion-v1-5-stable-diffusion-v1-5/42.webp"),
        (
            "{model}/",
            None,
            "stable-diffusion-v1-5-stable-diffusion-v1-5/a-red-house-on-green-hills-42.png",
        ),
        ("{index:05d}-{seed:x}.{ext}", "jpeg", "00001-2a.jpg"),
        ("{slug:.5}.png", None, "a-red.png"),
        ("{{{seed}}}.png", None, "{42}.png"),
        ("{ext}", None, "png"),
    ],
)
def test_output_becomes_a_path(output: str | None, format: str | None, expected: str) -> None:
    assert paths(output, format) == [Path(expected)]


def test_existing_folder_needs_no_slash_and_keeps_its_braces() -> None:
    target = filenames.parse_output("a{b}c", None, is_folder=True)
    assert filenames.output_paths(target, [request()]) == [
        Path("a{b}c/a-red-house-on-green-hills-42.png")
    ]


def test_index_counts_the_images_from_one() -> None:
    target = filenames.parse_output("{index}.png", None)
    found = filenames.output_paths(target, [request(), request(), request()])
    assert found == [Path("1.png"), Path("2.png"), Path("3.png")]


def test_dash_is_standard_output_for_one_image() -> None:
    target = filenames.parse_output("-", "jpg")
    assert (target.format, filenames.output_paths(target, [request()])) == ("jpeg", [None])
    with pytest.raises(InputError, match="one image, not 2") as error:
        filenames.output_paths(target, [request(), request(seed=1)])
    assert error.value.hint == "Name a folder: -o images/"


@pytest.mark.parametrize(
    ("output", "format", "message"),
    [
        ("cat.gif", None, "unknown extension .gif"),
        ("v1.5", "png", "unknown extension .5"),
        ("cat", None, "no file extension"),
        ("{slug}-{seed}", None, "no file extension"),
        ("cat.png", "webp", "--format webp contradicts"),
        ("cat.png", "tiff", "format 'tiff' is unknown; use one of: png, jpeg, webp"),
        ("-", "gif", "format 'gif' is unknown"),
        ("", None, "output is empty"),
        ("a\nb.png", None, "U\\+000A"),
        ("a\udcff.png", None, "U\\+DCFF"),
        ("{promt}.png", None, "placeholder {promt}; use any of: {index} {seed} {slug} {model}"),
        ("{}.png", None, "unknown placeholder {}"),
        ("{0}.png", None, "unknown placeholder {0}"),
        ("{seed.__class__}.png", None, "unknown placeholder {seed.__class__}"),
        ("{seed!r}.png", None, "unknown placeholder {seed!r}"),
        ("{seed.png", None, "is no template"),
        ("seed}.png", None, "is no template"),
        ("{seed:99999999999d}.png", None, "wider than any file name"),
        ("{seed:٩٩٩٩٩٩d}.png", None, "wider than any file name"),
        ("x" * 260 + ".png", None, "has 264 bytes"),
        ("x" * 260 + "/a.png", None, "has 260 bytes"),
    ],
)
def test_bad_output_is_refused_with_the_reason(
    output: str, format: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message.replace("{", "\\{").replace("}", "\\}")):
        paths(output, format)


@pytest.mark.parametrize("placeholder", ["{seed:q}", "{slug:d}", "{seed:c}", "{index:{seed}}"])
def test_bad_format_is_the_users_error(placeholder: str) -> None:
    with pytest.raises(InputError, match="cannot be written that way"):
        paths(f"{placeholder}.png", seed=2**32 - 1)


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        (None, "-o '{slug}-{seed}-{index}.{ext}'"),
        ("cat.png", "-o 'cat-{index}.png'"),
        ("{model}.png", "-o '{model}-{index}.png'"),
    ],
)
def test_two_images_of_one_name_are_refused_and_told_how_to_number(
    output: str | None, hint: str
) -> None:
    with pytest.raises(InputError, match="Several images") as error:
        filenames.output_paths(filenames.parse_output(output, None), [request(), request()])
    assert error.value.hint and hint in error.value.hint


def test_names_that_a_file_system_may_hold_to_be_one_are_refused() -> None:
    target = filenames.parse_output("{model}.png", None)
    with pytest.raises(InputError, match="Several images"):
        filenames.output_paths(target, [request(model="Caf\u00e9"), request(model="cafe\u0301")])


def test_webp_that_is_too_large_is_refused_before_anything_runs() -> None:
    with pytest.raises(InputError, match="16,383"):
        paths("a.webp", width=16_384)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A red house, on GREEN hills!", "a-red-house-on-green-hills"),
        ("日本の家、夜", "日本の家-夜"),
        ("हिन्दी में घर", "हिन्दी-में-घर"),
        ("بيت أحمر", "بيت-أحمر"),
        ("ＦＵＬＬ width ①", "full-width-1"),
        ("🎨🎨", "image"),
        ("../../etc/passwd", "etc-passwd"),
        ("a\nb\tc", "a-b-c"),
        ("word " * 20, "word-word-word-word-word-word-word-word"),
        ("x" * 100, "x" * 40),
        (f"{'x' * 20} {'y' * 19} z", f"{'x' * 20}-{'y' * 19}"),
        (f"{'x' * 20} {'y' * 20} z", "x" * 20),
    ],
)
def test_slug_keeps_letters_and_digits_of_any_script(prompt: str, expected: str) -> None:
    assert filenames.slugify(prompt) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("a/b", "a-b.png"),
        ("/models/sd 1.5/", "models-sd-1.5.png"),
        ("..", "none.png"),
        ("C:\\models\\x", "C--models-x.png"),
        ("con", "con_.png"),
        ("LPT1.x", "LPT1_.x.png"),
        ("com¹", "com¹_.png"),
        ("COM³.x", "COM³_.x.png"),
        ("lpt²", "lpt²_.png"),
        ("conin$", "conin$_.png"),
        ("CONOUT$.", "CONOUT$_.png"),
        ("COM10", "COM10.png"),
        ("a\x1b[31m\u202eb", "a-[31m-b.png"),
    ],
)
def test_a_value_cannot_leave_its_folder_or_name_a_device(model: str, expected: str) -> None:
    assert paths("{model}.png", model=model) == [Path(expected)]


@given(prompt=st.text(min_size=1), model=st.text(min_size=1))
def test_any_value_gives_one_safe_name(prompt: str, model: str) -> None:
    slug = filenames.slugify(prompt)
    assert slug and len(slug) <= filenames.MAX_SLUG and slug == slug.strip("-")
    for template in ("{slug}.png", "{model}.png", "{slug}-{seed}.{ext}"):
        (path,) = paths(template, prompt=prompt, model=model)
        assert path is not None
        assert path.parts == (path.name,)
        assert len(path.name.encode()) <= filenames.MAX_NAME_BYTES
        assert not set(path.name) & set('/\\:*?"<>|\0\n\r\t')
        assert path.name.partition(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL", "COM1"}
        assert path.suffix == ".png"


@given(output=st.text(), format=st.none() | st.sampled_from(["png", "jpg", "x"]))
def test_any_output_gives_a_path_or_an_input_error(output: str, format: str | None) -> None:
    try:
        paths(output, format)
    except InputError as error:
        assert error.message


def test_any_field_of_the_request_may_stand_in_a_name() -> None:
    template = "{steps}-{scheduler}-{guidance_scale}-{id}.png"
    found = request(guidance_scale=None)
    assert paths(template, guidance_scale=None) == [
        Path(f"30-dpm++2m-karras-none-{found.identity()}.png")
    ]


def test_the_format_is_kept_where_no_extension_tells_it() -> None:
    assert filenames.parse_output("-", None).format == "png"
    assert filenames.parse_output("cat", "webp").format == "webp"


@pytest.mark.parametrize(
    ("output", "message", "hint"),
    [
        ("", "The output is empty.", "-o ./ writes to this folder."),
        (
            "cat",
            "The output 'cat' has no file extension.",
            "End it in .png, .jpg or .webp, or in / for a folder.",
        ),
        (
            "a.png{slug}",
            "The output 'a.png{slug}' has no file extension.",
            "End it in .png, .jpg or .webp, or in / for a folder.",
        ),
        (
            "y" * 50 + "x" * 250 + ".png",
            f"The name {'y' * 40!r}… has 304 bytes; file systems take at most 255.",
            None,
        ),
    ],
)
def test_a_refusal_says_what_and_what_to_do(output: str, message: str, hint: str | None) -> None:
    with pytest.raises(InputError) as caught:
        paths(output)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_format_that_is_none_is_shown_as_it_was_written() -> None:
    with pytest.raises(InputError, match=r"^The placeholder \{seed:q\} cannot be written that way"):
        paths("{seed:q}.png")


def test_names_may_be_as_long_as_file_systems_take() -> None:
    longest = "x" * 251 + ".png"
    assert paths(longest) == [Path(longest)]


@pytest.mark.parametrize(
    ("width", "height", "fits"),
    [(16_383, 16_383, True), (64, 16_384, False), (16_384, 64, False), (None, None, True)],
)
def test_webp_takes_so_many_pixels_a_side(
    width: int | None, height: int | None, fits: bool
) -> None:
    if fits:
        assert paths("a.webp", width=width, height=height) == [Path("a.webp")]
    else:
        with pytest.raises(InputError, match="16,383"):
            paths("a.webp", width=width, height=height)


@pytest.mark.parametrize(
    ("template", "format", "numbered"),
    [
        ("a.b/{model}.x.png", None, "a.b/{model}.x-{index}.png"),
        ("{model}", "png", "{model}-{index}"),
    ],
)
def test_the_number_goes_before_the_last_dot(
    template: str, format: str | None, numbered: str
) -> None:
    target = filenames.parse_output(template, format)
    with pytest.raises(InputError) as caught:
        filenames.output_paths(target, [request(model="m"), request(model="m")])
    shown = str(Path(template.replace("{model}", "m")))
    assert caught.value.message == f"Several images would be written to {shown!r}."
    assert caught.value.hint == f"Number them with a template: -o '{numbered}'"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (" -./x/.- ", "x"),
        ("XxX", "XxX"),
        ("a" * 159 + "-b", "a" * 159),
        ("a" * 161, "a" * 160),
        ("a" + "é" * 80, "a" + "é" * 79),
    ],
)
def test_a_value_is_cut_and_has_no_dots_or_dashes_at_its_ends(model: str, expected: str) -> None:
    assert paths("{model}.png", model=model) == [Path(f"{expected}.png")]


def test_the_nearest_folder_that_is_there_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for path, parent in [("a", "a"), ("a/b/c.png", "a"), ("b/c", "."), ("a/../b", ".")]:
        assert filenames.existing_parent(Path(path)) == tmp_path / parent
    monkeypatch.setattr("os.path.exists", lambda path: False)
    assert filenames.existing_parent(Path("a")) == Path(tmp_path.anchor)
