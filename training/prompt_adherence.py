"""Grades prompt adherence: compares what a caption asks for with what is measured in an image."""

from dataclasses import dataclass

from PIL import Image

from training.caption_parser import ParsedLandscape, ParsedShape, ParsedShapes, parse_caption
from training.measure import FIT, Found, background_colour, nearest_colour, pixels_of, shapes
from training.measure_landscapes import measure_landscape


@dataclass(frozen=True)
class Grade:
    """Each check by name with its outcome, and what was seen, in words."""

    checks: dict[str, bool]
    seen: str

    @property
    def passed(self) -> bool:
        """Whether every check came out true."""
        return all(self.checks.values())


def grade_image(image: Image.Image, caption: str) -> Grade:
    """Check a picture against its caption; raises ValueError if the caption names nothing known."""
    parsed = parse_caption(caption)
    pixels = pixels_of(image)
    if isinstance(parsed, ParsedLandscape):
        view = measure_landscape(pixels)
        return Grade(_landscape_checks(parsed, view.__dict__), str(view))
    found = shapes(pixels, len(parsed.shapes))
    background = nearest_colour(background_colour(pixels))
    if len(parsed.shapes) == 1:
        checks = _one(parsed.shapes[0], found)
    else:
        checks = _two(parsed, found)
    if parsed.background is not None:
        checks = {"background": background == parsed.background} | checks
    return Grade(checks, f"{background} background, {found}")


def _landscape_checks(parsed: ParsedLandscape, view: dict[str, str | None]) -> dict[str, bool]:
    checks = {
        name: view[name] == wanted
        for name, wanted in parsed.__dict__.items()
        if wanted is not None and name != "light"
    }
    # Suns may hide behind objects and moons at dawn are pale: only clear cases are judged.
    if parsed.light is not None and view["time"] == "night":
        seen = view["light"] or ""
        checks["light"] = seen == parsed.light or (parsed.light == "moon" and "moon" in seen)
    return checks


def _fits(parsed: ParsedShape, found: Found) -> bool:
    return found.kind == parsed.kind and found.fit >= FIT


def _one(parsed: ParsedShape, found: list[Found]) -> dict[str, bool]:
    first = found[0] if found else None
    checks = {
        "alone": len(found) == 1,
        "shape": first is not None and _fits(parsed, first),
    }
    if parsed.colour is not None:
        checks["colour"] = first is not None and first.colour == parsed.colour
    if parsed.size is not None:
        checks["size"] = first is not None and first.size == parsed.size
    return checks


def _two(parsed: ParsedShapes, found: list[Found]) -> dict[str, bool]:
    """Colours, kinds and sizes of two shapes where the caption puts them."""
    if len(found) < 2:
        return {"two": False, "places": False, "shape": False}
    pair = found[:2]
    if parsed.relation == "above":
        orders = [sorted(pair, key=lambda shape: shape.y)]
    elif parsed.relation == "left":
        orders = [sorted(pair, key=lambda shape: shape.x)]
    else:
        orders = [pair, pair[::-1]]
    return max((_pair(parsed, order) for order in orders), key=lambda checks: sum(checks.values()))


def _pair(parsed: ParsedShapes, order: list[Found]) -> dict[str, bool]:
    matched = list(zip(parsed.shapes, order, strict=True))
    colours = [want.colour in (None, seen.colour) for want, seen in matched]
    checks = {"two": True, "places": all(colours), "shape": all(_fits(*both) for both in matched)}
    sizes = [want.size == seen.size for want, seen in matched if want.size is not None]
    if sizes:
        checks["size"] = all(sizes)
    if parsed.relation is not None:
        axis = [seen.x if parsed.relation == "left" else seen.y for seen in order]
        across = [seen.y if parsed.relation == "left" else seen.x for seen in order]
        checks["order"] = axis[1] - axis[0] > abs(across[1] - across[0])
    return checks
