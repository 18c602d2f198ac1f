"""Judges a picture by a caption: what it asks for, what is to be seen, and whether they agree."""

from dataclasses import dataclass

from PIL import Image

from training.measure import FIT, Found, background_colour, nearest_colour, pixels_of, shapes
from training.survey import look
from training.wish import LandscapeWish, ShapesWish, ShapeWish, read


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
    wish = read(caption)
    pixels = pixels_of(image)
    if isinstance(wish, LandscapeWish):
        view = look(pixels)
        return Grade(_landscape_checks(wish, view.__dict__), str(view))
    found = shapes(pixels, len(wish.shapes))
    background = nearest_colour(background_colour(pixels))
    if len(wish.shapes) == 1:
        checks = _one(wish.shapes[0], found)
    else:
        checks = _two(wish, found)
    if wish.background is not None:
        checks = {"background": background == wish.background} | checks
    return Grade(checks, f"{background} background, {found}")


def _landscape_checks(wish: LandscapeWish, view: dict[str, str | None]) -> dict[str, bool]:
    checks = {
        name: view[name] == wanted
        for name, wanted in wish.__dict__.items()
        if wanted is not None and name != "light"
    }
    # Suns may hide behind objects and moons at dawn are pale: only clear cases are judged.
    if wish.light is not None and view["time"] == "night":
        seen = view["light"] or ""
        checks["light"] = seen == wish.light or (wish.light == "moon" and "moon" in seen)
    return checks


def _fits(wish: ShapeWish, found: Found) -> bool:
    return found.kind == wish.kind and found.fit >= FIT


def _one(wish: ShapeWish, found: list[Found]) -> dict[str, bool]:
    first = found[0] if found else None
    checks = {
        "alone": len(found) == 1,
        "shape": first is not None and _fits(wish, first),
    }
    if wish.colour is not None:
        checks["colour"] = first is not None and first.colour == wish.colour
    if wish.size is not None:
        checks["size"] = first is not None and first.size == wish.size
    return checks


def _two(wish: ShapesWish, found: list[Found]) -> dict[str, bool]:
    """Colours, kinds and sizes of two shapes where the caption puts them."""
    if len(found) < 2:
        return {"two": False, "places": False, "shape": False}
    pair = found[:2]
    if wish.relation == "above":
        orders = [sorted(pair, key=lambda shape: shape.y)]
    elif wish.relation == "left":
        orders = [sorted(pair, key=lambda shape: shape.x)]
    else:
        orders = [pair, pair[::-1]]
    return max((_pair(wish, order) for order in orders), key=lambda checks: sum(checks.values()))


def _pair(wish: ShapesWish, order: list[Found]) -> dict[str, bool]:
    matched = list(zip(wish.shapes, order, strict=True))
    colours = [want.colour in (None, seen.colour) for want, seen in matched]
    checks = {"two": True, "places": all(colours), "shape": all(_fits(*both) for both in matched)}
    sizes = [want.size == seen.size for want, seen in matched if want.size is not None]
    if sizes:
        checks["size"] = all(sizes)
    if wish.relation is not None:
        axis = [seen.x if wish.relation == "left" else seen.y for seen in order]
        across = [seen.y if wish.relation == "left" else seen.x for seen in order]
        checks["order"] = axis[1] - axis[0] > abs(across[1] - across[0])
    return checks
