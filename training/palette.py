"""The colours of the postcard world, as 8-bit RGB, to draw with and to measure by."""

from typing import Final

RGB = tuple[int, int, int]

COLOURS: Final[dict[str, RGB]] = {
    "red": (212, 48, 48),
    "orange": (244, 142, 40),
    "yellow": (252, 218, 70),
    "green": (58, 156, 82),
    "blue": (44, 96, 204),
    "purple": (128, 66, 172),
    "pink": (246, 156, 196),
    "brown": (126, 80, 48),
    "black": (30, 30, 38),
    "white": (250, 248, 244),
}

# Top and horizon of the sky's gradient.
SKIES: Final[dict[str, tuple[RGB, RGB]]] = {
    "day": (((92, 172, 236)), (198, 230, 248)),
    "sunset": ((112, 58, 124), (252, 150, 76)),
    "night": ((14, 18, 54), (48, 58, 122)),
    "dawn": ((156, 158, 222), (252, 212, 204)),
}

# The nearest layer of the ground, by time of day.
GROUNDS: Final[dict[str, dict[str, RGB]]] = {
    "hills": {
        "day": (84, 170, 82),
        "sunset": (88, 112, 58),
        "night": (26, 72, 60),
        "dawn": (118, 168, 116),
    },
    "desert": {
        "day": (236, 180, 112),
        "sunset": (212, 112, 66),
        "night": (116, 80, 84),
        "dawn": (230, 172, 140),
    },
    "snow": {
        "day": (246, 250, 254),
        "sunset": (246, 208, 200),
        "night": (140, 156, 206),
        "dawn": (238, 230, 246),
    },
    "sea": {
        "day": (36, 116, 188),
        "sunset": (100, 72, 134),
        "night": (18, 42, 106),
        "dawn": (106, 138, 194),
    },
    "field": {
        "day": (234, 208, 76),
        "sunset": (218, 156, 36),
        "night": (108, 112, 48),
        "dawn": (228, 206, 112),
    },
}

SUNS: Final[dict[str, RGB]] = {
    "day": (255, 226, 84),
    "sunset": (255, 92, 58),
    "dawn": (255, 244, 176),
}
MOON: Final[RGB] = (250, 244, 214)
TREE: Final[dict[str, RGB]] = {
    "day": (34, 112, 66),
    "sunset": (44, 78, 52),
    "night": (12, 44, 44),
    "dawn": (58, 116, 92),
}
CACTUS: Final[RGB] = (34, 134, 84)
TRUNK: Final[RGB] = (104, 66, 42)
ROOF: Final[RGB] = (92, 52, 48)
DARK: Final[RGB] = (40, 36, 48)
LIT: Final[RGB] = (255, 220, 110)
GLASS: Final[RGB] = (206, 232, 246)
RIM: Final[RGB] = (96, 124, 190)
SNOWBALL: Final[RGB] = (252, 252, 255)
HULL: Final[RGB] = (112, 70, 46)


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """The colour `share` (0 to 1) of the way from `first` to `second`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue
