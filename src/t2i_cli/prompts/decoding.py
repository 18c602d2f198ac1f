"""Decodes prompts files from UTF-8, UTF-16 or UTF-32 to lines; every line end becomes a newline."""

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from typing import cast

from t2i_cli.errors import InputError
from t2i_cli.prompts.entries import PromptProblem

_BOMS = {
    # UTF-32's first: the mark of UTF-16 LE is its beginning.
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_SAMPLE = 1_000
"""Bytes in which UTF-16 without a byte-order mark is looked for."""
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MARK_UNDECODABLE = "t2i-mark-undecodable"


def _mark_undecodable(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: a lone surrogate stands for each undecodable part."""
    return "\udcff", cast(UnicodeDecodeError, error).end


codecs.register_error(_MARK_UNDECODABLE, _mark_undecodable)


def decode_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, str | PromptProblem]]:
    r"""Decode a file's lines, each with its number from 1; they end in `\n`.

    CR LF and a lone CR are line ends too, which is why the bytes may be cut anywhere.
    """
    data = b"".join(lines)
    encoding, start = _detect_encoding(data)
    utf8 = encoding == "utf-8"
    buffer = io.BytesIO(data)
    buffer.seek(start)
    errors = "surrogateescape" if utf8 else _MARK_UNDECODABLE
    text = io.TextIOWrapper(buffer, encoding=encoding, errors=errors)
    for number, line in enumerate(text, 1):
        if bad := _SURROGATE.search(line):
            where = f"byte {len(line[: bad.start()].encode()) + 1}" if utf8 else "a character"
            name = encoding.upper().removesuffix("-LE").removesuffix("-BE")
            yield number, PromptProblem(number, None, f"{where} is not {name}.")
        else:
            yield number, line


def decode_text(data: bytes) -> str:
    """Decode a whole text. Raises InputError."""
    parts: list[str] = []
    for number, line in decode_lines([data]):
        if isinstance(line, PromptProblem):
            raise InputError(f"line {number}: {line.message}")
        parts.append(line)
    return "".join(parts)


def _detect_encoding(data: bytes) -> tuple[str, int]:
    """The encoding, and the length of the byte-order mark.

    Without a mark, UTF-16 is known by zeros in every second byte: text that is mostly Latin.
    """
    for mark, encoding in _BOMS.items():
        if data.startswith(mark):
            return encoding, len(mark)
    sample = data[:_SAMPLE]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if max(even, odd) > len(sample) // 4 and min(even, odd) <= len(sample) // 100:
        return ("utf-16-le" if odd > even else "utf-16-be"), 0
    return "utf-8", 0
