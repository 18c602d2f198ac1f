"""What one image costs where images are billed one by one."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ImagePrice:
    """The price of one image in USD, `None` if it is not known, and what it is taken from.

    `source` is the date and place of the price table, or who bills an unknown price.
    """

    usd: float | None
    source: str
