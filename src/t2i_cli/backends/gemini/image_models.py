"""Google's image models: their names, and the sizes and aspect ratios that they make.

Sources, as of November 2026: Google's pages of each model and "Aspect ratios and image size" of
the Gemini API's documentation; `ImageConfig` of google-cloud-aiplatform 2.7. Prices stand in
`models/image_prices.toml`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from t2i_cli.errors import ModelError
from t2i_cli.known_names import suggest_name
from t2i_cli.model_spec import ModelSpec
from t2i_cli.request_fields import OPTIONAL_FIELDS
from t2i_cli.settings.schema import SETTINGS

DEFAULT_IMAGE_SIZE = "1K"
"""What Google makes where no size is asked for."""

_SCALES = {"512": 0.5, "1K": 1, "2K": 2, "4K": 4}
"""Sides of an image by `imageSize`, as multiples of those at 1K."""
_PRICE_CLASSES = {"512": "0.5K"}
"""Names of image sizes in the table of prices, where they differ."""

_GEMINI_3 = {
    "1:1": (1024, 1024),
    "2:3": (848, 1264),
    "3:2": (1264, 848),
    "3:4": (896, 1200),
    "4:3": (1200, 896),
    "4:5": (928, 1152),
    "5:4": (1152, 928),
    "9:16": (768, 1376),
    "16:9": (1376, 768),
    "21:9": (1584, 672),
}
"""Width and height in pixels at 1K, by aspect ratio."""
_GEMINI_3_STRIPS = {"1:4": (512, 2048), "4:1": (2048, 512), "1:8": (384, 3072), "8:1": (3072, 384)}
_GEMINI_2_5 = {
    "1:1": (1024, 1024),
    "2:3": (832, 1248),
    "3:2": (1248, 832),
    "3:4": (864, 1184),
    "4:3": (1184, 864),
    "4:5": (896, 1152),
    "5:4": (1152, 896),
    "9:16": (768, 1344),
    "16:9": (1344, 768),
    "21:9": (1536, 672),
}


@dataclass(frozen=True, kw_only=True)
class ImageModel:
    """One of Google's image models.

    `ratios` has width and height in pixels at 1K for each aspect ratio; it is empty for a model
    that is not in the table. `image_sizes` are the values of `imageSize` that it takes, empty for
    1K only and without that field.
    """

    name: str
    ratios: Mapping[str, tuple[int, int]]
    image_sizes: tuple[str, ...]

    @property
    def known(self) -> bool:
        """Whether its sizes are known."""
        return bool(self.ratios)

    def sizes(self) -> dict[tuple[int, int], tuple[str, str]]:
        """Aspect ratio and `imageSize` for each size in pixels that it makes, 1K first."""
        found: dict[tuple[int, int], tuple[str, str]] = {}
        image_sizes = self.image_sizes or (DEFAULT_IMAGE_SIZE,)
        for image_size in sorted(image_sizes, key=lambda each: each != DEFAULT_IMAGE_SIZE):
            for ratio, (width, height) in self.ratios.items():
                if (ratio, image_size) == ("21:9", "512"):
                    continue  # Google's table says 792x168, which is no 21:9.
                scale = _SCALES[image_size]
                found.setdefault((int(width * scale), int(height * scale)), (ratio, image_size))
        return found

    def spec(self) -> ModelSpec:
        """Describe it: it takes a prompt, a size if its sizes are known, and a few extras."""
        takes = {"extras", "width", "height"} if self.known else {"extras"}
        return ModelSpec(
            name=self.name,
            multiple=1,
            sizes=tuple(self.sizes()),
            refuses=tuple(
                (field, self._refusal(field)) for field in OPTIONAL_FIELDS if field not in takes
            ),
        )

    def _refusal(self, field: str) -> str:
        if field == "seed":
            return f"{self.name} honours no seed: each call makes another image."
        if field in {"width", "height"}:
            return (
                f"Which sizes {self.name} makes is not known to t2i; "
                "--set aspect_ratio=16:9 and --set image_size=2K are sent as they are."
            )
        return f"{self.name} takes no {field.replace('_', ' ')}."


IMAGE_MODELS: Mapping[str, ImageModel] = {
    model.name: model
    for model in (
        ImageModel(
            name="gemini-3.1-flash-image",
            ratios=_GEMINI_3 | _GEMINI_3_STRIPS,
            image_sizes=("512", "1K", "2K", "4K"),
        ),
        ImageModel(name="gemini-3-pro-image", ratios=_GEMINI_3, image_sizes=("1K", "2K", "4K")),
        # Google announced its end for October 2026 at the earliest.
        ImageModel(name="gemini-2.5-flash-image", ratios=_GEMINI_2_5, image_sizes=()),
    )
}
"""The models whose sizes are known."""


def find_image_model(name: str) -> ImageModel:
    """The model of this name; one that begins with `gemini-` need not be in the table.

    Raises ModelError.
    """
    if found := IMAGE_MODELS.get(name):
        return found
    known = ", ".join(IMAGE_MODELS)
    if name.startswith(("imagen", "imagegeneration")):
        raise ModelError(
            f"Google ended Imagen in August 2026: {name[:100]} is not served any more.",
            hint=f"-m names one of {known}.",
        )
    # A name becomes a part of a URL.
    if not SETTINGS["gemini_model"].accepts(name):
        raise ModelError(
            f"{name[:100]!r} is no name of a Gemini model.",
            hint=f"{suggest_name(name, IMAGE_MODELS)}-m names one of {known}, or leave it out.",
        )
    return ImageModel(name=name, ratios={}, image_sizes=())


def price_class(image_size: str) -> str:
    """The name of an image size in the table of prices."""
    return _PRICE_CLASSES.get(image_size, image_size)
