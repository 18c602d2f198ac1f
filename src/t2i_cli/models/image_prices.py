"""Dated tables of what one image costs, for backends whose images are billed one by one."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from t2i_cli.errors import InputError
from t2i_cli.files.state_files import is_amount, is_text
from t2i_cli.files.toml_files import read_toml_file
from t2i_cli.image_price import ImagePrice
from t2i_cli.price_dates import with_age
from t2i_cli.settings import store

TABLE_FILE = "image_prices.toml"
"""The built-in tables, beside this module."""


@dataclass(frozen=True, kw_only=True)
class ImagePriceTable:
    """Prices of images in USD, by model: one for every size, or one for each class of sizes.

    `source` is the date and where the prices are from.
    """

    source: str
    images: Mapping[str, float | Mapping[str, float]]

    def price_of(self, name: str, size_class: str | None) -> float | None:
        """The price of an image by this model at this class of sizes, if the table has it."""
        found = self.images.get(name)
        if isinstance(found, Mapping):
            return None if size_class is None else found.get(size_class)
        return found


@cache
def built_in_table(backend: str) -> ImagePriceTable:
    """The built-in prices of a backend."""
    text = resources.files(__package__).joinpath(TABLE_FILE).read_text(encoding="utf-8")
    record = tomllib.loads(text)[backend]
    return ImagePriceTable(
        source=f"table: {with_age(record['date'])}, {record['source']}", images=record["images"]
    )


def read_image_prices(named: str) -> ImagePriceTable:
    """The prices of a user's TOML file. Raises InputError or StorageError."""
    file, record = read_toml_file(named)
    images = record.get("images", {})
    valid = isinstance(images, dict) and all(
        is_amount(price)
        or (isinstance(price, dict) and all(is_amount(each) for each in price.values()))
        for price in images.values()
    )
    if not valid or not isinstance(images, dict):
        raise InputError(
            f"{file}: [images] must give USD an image for each model, or for each of its sizes.",
            hint='As "gemini-3-pro-image" = 0.14, or = { "1K" = 0.14, "4K" = 0.25 }.',
        )
    date = str(record.get("date", "no date"))
    shown = date[:100] if is_text(date[:100]) else "no date"
    return ImagePriceTable(source=f"table: {with_age(shown)}, {file}", images=images)


def find_image_price(
    backend: str, model: str, *, provider: str | None = None, size_class: str | None = None
) -> ImagePrice:
    """What one image costs; `usd` is `None` where no table has the price.

    The user's table (setting `image_prices`) stands over the built-in one. In both a price may be
    the model's with one provider ("PROVIDER/MODEL"), which goes before the model's alone. A price
    that depends on the size is unknown without `size_class`. Raises InputError or StorageError.
    """
    named = store.get_setting("image_prices")
    built_in = built_in_table(backend)
    tables = [built_in] if named is None else [_user_table(named), built_in]
    names = [f"{provider}/{model}", model] if provider else [model]
    for table in tables:
        for name in names:
            if (usd := table.price_of(name, size_class)) is not None:
                return ImagePrice(usd=float(usd), source=table.source)
    return ImagePrice(usd=None, source=f"not in the {tables[0].source}")


@cache
def _user_table(named: str) -> ImagePriceTable:
    """The user's table; read once, as every image of a batch asks for its price."""
    return read_image_prices(named)
