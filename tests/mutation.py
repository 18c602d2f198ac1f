"""Inputs for readers: valid ones with something changed, and others from a grammar.

All from one `Random`, so that the number of an input repeats it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from random import Random
from typing import Any

Mutate = Callable[[Random, Sequence[bytes]], bytes]
"""An input, from the valid ones."""

VALUES: tuple[object, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, 2**31, 2**53, 2**64, 10**30, 10**400),
    *(float("nan"), float("inf"), "", " ", "0", "-1", "1e999", "9" * 400, "x", "x" * 5_000, "\0"),
    *("\ud800", "ä", "\u202e", "\r\n", "../../x", "/etc/passwd", "C:\\x", "~nouser/x", "{}", "[]"),
    *("http://", "http://[::1", "2026-13-45T00:00:00Z", "0001-01-01T00:00:00", "done", "💥"),
    *([], {}, [[]], [None], [{}], {"": None}, {"name": 1}, [0, 1, 2], ["a"], [1, "a", None]),
)
"""What programs other than t2i may write in any place."""
_DEEP = (30, 40, 300, 2_000)
_CHUNKS = (
    *(b"\0", b"\n", b"\r", b"\r\n", b"\t", b'"', b"'", b",", b";", b":", b"=", b"{", b"}", b"["),
    *(b"]", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"9" * 5_000),
    *(b"NaN", b"-Infinity", b"1e999", b"null", b"//", b"#", b"\x1b[31m", b"\x00\x00\x00\x01"),
)


def any_json(chance: Random, depth: int = 3) -> object:
    """A JSON value from the grammar, with lone surrogates and numbers of any length."""
    kind = chance.randrange(8 if depth else 5)
    if kind < 5:
        return _value(chance)
    if kind == 5:
        return [any_json(chance, depth - 1) for _ in range(chance.randrange(4))]
    return {
        str(chance.choice(("", "a", "name", "id", "\0", "status", "data", "error"))): any_json(
            chance, depth - 1
        )
        for _ in range(chance.randrange(4))
    }


def mutate_json(chance: Random, valid: Sequence[bytes]) -> bytes:
    """JSON with some values replaced, left out or doubled; or damaged bytes; or other JSON."""
    kind = chance.randrange(10)
    if kind == 0:
        return mutate_bytes(chance, valid)
    if kind == 1:
        return _encode(any_json(chance))
    if kind == 2:
        return _nest(chance, chance.choice(valid))
    value: Any = json.loads(chance.choice(valid))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        value = _changed(chance, value)
    return _encode(value)


def mutate_lines(chance: Random, valid: Sequence[bytes]) -> bytes:
    """JSON Lines after a header, some of them changed; the lines of the first are valid."""
    header, *lines = valid
    chosen = [chance.choice(lines) for _ in range(chance.randrange(1, 4))]
    changed = [
        mutate_json(chance, [line]).replace(b"\n", b" ") if chance.random() < 0.7 else line
        for line in chosen
    ]
    whole = b"\n".join([header, *changed, b""])
    return mutate_bytes(chance, [whole]) if chance.random() < 0.1 else whole


def mutate_bytes(chance: Random, valid: Sequence[bytes]) -> bytes:
    """Bytes with some flipped, cut out, doubled or inserted; at times only such."""
    if chance.random() < 0.05:
        return chance.randbytes(chance.randrange(60))
    data = bytearray(chance.choice(valid))
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0 if data:
                data[place % len(data)] = chance.randrange(256)
            case 1:
                del data[place : place + chance.choice((1, 4, 50))]
            case 2:
                data[place:place] = data[place : place + chance.randrange(40)]
            case 3:
                data[place:place] = chance.choice(_CHUNKS)
            case _:
                del data[place:]
    return bytes(data)


def mutate_text(chance: Random, valid: Sequence[bytes]) -> bytes:
    """Text of which a value after `=`, `,` or `:` is replaced, or that is damaged as bytes."""
    if chance.random() < 0.5:
        return mutate_bytes(chance, valid)
    data = chance.choice(valid)
    places = [n for n, byte in enumerate(data) if byte in b"=,:\n"] or [0]
    start = chance.choice(places) + 1
    ends = [n for n in places if n > start] or [len(data)]
    value = _value(chance)
    text = value if isinstance(value, str) and chance.random() < 0.5 else json.dumps(value)
    return data[:start] + text.encode(errors="surrogatepass") + data[ends[0] :]


def _value(chance: Random) -> object:
    """One of VALUES, as a copy that may be changed."""
    return deepcopy(chance.choice(VALUES))


def _encode(value: object) -> bytes:
    return json.dumps(value).encode()


def _nest(chance: Random, data: bytes) -> bytes:
    """The document with brackets in place of one of its values."""
    depth = chance.choice(_DEEP)
    opening, closing = chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
    deep = opening * depth + b"1" + closing * depth * chance.randrange(2)
    value = json.loads(data)
    marked = _encode(_changed(chance, value, lambda: "MARK"))
    return marked.replace(b'"MARK"', deep, 1)


def _changed(chance: Random, value: Any, make: Callable[[], object] | None = None) -> object:  # noqa: ANN401
    """The value with one place in it changed."""
    places = list(_places(value))
    if not places:
        return make() if make else _value(chance)
    holder, key = chance.choice(places)
    kind = chance.randrange(8)
    if make:
        holder[key] = make()
    elif kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        other = chance.choice(("", "a", "pin", "status", "id", "name", "\0"))
        holder[other] = deepcopy(holder[key])
    elif kind == 1:
        holder.append(deepcopy(holder[key]))
    elif kind == 2:
        holder[key] = [holder[key]]
    elif kind == 3:
        holder[key] = str(holder[key])
    elif kind == 4:
        holder[key] = any_json(chance)
    else:
        holder[key] = _value(chance)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401
    """Each place of a value in an object or list: the holder, and its key or index."""
    keys: Sequence[Any] = list(value) if isinstance(value, dict) else ()
    for key in range(len(value)) if isinstance(value, list) else keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])
