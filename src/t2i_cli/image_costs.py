"""Adds up what images cost that are billed one by one: before a run, and as they are made."""

from collections.abc import Iterable, Sequence
from decimal import Decimal

from t2i_cli.errors import AccessError, InputError, ModelError, QuotaError, T2IError
from t2i_cli.image_price import ImagePrice

_UNBILLED_ERRORS = (AccessError, InputError, ModelError, QuotaError)
"""Refusals before any work. All other failures may be billed, and are counted as if they were."""


class ImageCosts:
    """The number of images at each price; what is not billed by the image is left out."""

    def __init__(self, prices: Iterable[ImagePrice | None] = ()) -> None:
        self.images_by_price: dict[ImagePrice, int] = {}
        for price in prices:
            self.add(price)

    def add(self, price: ImagePrice | None) -> None:
        """Count one image more."""
        if price is not None:
            self.images_by_price[price] = self.images_by_price.get(price, 0) + 1

    @property
    def images(self) -> int:
        """Images that are billed one by one."""
        return sum(self.images_by_price.values())

    @property
    def unknown(self) -> int:
        """Those of them whose price is not known."""
        return sum(count for price, count in self.images_by_price.items() if price.usd is None)

    @property
    def known_usd(self) -> Decimal:
        """The sum of the prices that are known."""
        return sum(
            (
                exact_usd(price.usd) * count
                for price, count in self.images_by_price.items()
                if price.usd is not None
            ),
            Decimal(0),
        )

    @property
    def sources(self) -> str:
        """What the prices are taken from, or who bills unknown ones."""
        return "; ".join(dict.fromkeys(price.source for price in self.images_by_price))

    def to_json(self) -> dict[str, object]:
        """The costs as records have them: `usd` is null where a price is not known."""
        return {
            "images": self.images,
            "unknown": self.unknown,
            "usd": None if self.unknown else float(self.known_usd),
            "prices": [
                {"images": count, "usd": price.usd, "source": price.source}
                for price, count in self.images_by_price.items()
            ],
        }

    def sum_text(self) -> str:
        """The sum, as `0.24 USD`."""
        known = f"{format_usd(self.known_usd)} USD"
        if not self.unknown:
            return known
        unknown = f"{_images_text(self.unknown)} at an unknown price"
        return unknown if self.unknown == self.images else f"{known} and {unknown}"

    def text(self) -> str:
        """Images times prices, their sum, and what it is taken from."""
        known = [
            f"{_images_text(count)} × {format_usd(exact_usd(price.usd))} USD"
            for price, count in self.images_by_price.items()
            if price.usd is not None
        ]
        parts = [f"{' + '.join(known)} = {format_usd(self.known_usd)} USD"] * bool(known)
        parts += [f"not known for {_images_text(self.unknown)}"] * bool(self.unknown)
        return f"{', and '.join(parts)}; an estimate ({self.sources})"


def estimated_cost(prices: Sequence[ImagePrice | None], limit: float | None) -> dict[str, object]:
    """The costs of a plan as its JSON has them, under `cost`; empty where nothing is billed."""
    costs = ImageCosts(prices)
    if not costs.images:
        return {}
    within = {} if limit is None else {"limit": limit, "within": images_within(prices, limit)}
    return {"cost": costs.to_json() | within}


def estimated_cost_text(prices: Sequence[ImagePrice | None], limit: float | None) -> str | None:
    """The costs of a plan for people; `None` where nothing is billed."""
    costs = ImageCosts(prices)
    if not costs.images:
        return None
    if limit is None or (within := images_within(prices, limit)) == len(prices):
        return costs.text()
    room = f"--max-cost {format_usd(exact_usd(limit))} has room for {_images_text(within)}"
    return f"{costs.text()}; {room}"


def is_billed(error: T2IError | None) -> bool:
    """Whether an image counts as paid: it was made, or failed when work may have begun."""
    return not isinstance(error, _UNBILLED_ERRORS)


def images_within(prices: Sequence[ImagePrice | None], limit: float) -> int:
    """How many of the images, from the first on, cost together no more than `limit` USD."""
    left = exact_usd(limit)
    for number, price in enumerate(prices):
        left -= exact_usd((price and price.usd) or 0)
        if left < 0:
            return number
    return len(prices)


def check_cost_limit(prices: Sequence[ImagePrice | None], limit: float) -> None:
    """Raise InputError if a limit in USD cannot be kept, or leaves room for no image."""
    check_known_prices(prices)
    if prices and not images_within(prices, limit):
        first = next(iter(ImageCosts(prices).images_by_price))
        raise InputError(
            f"--max-cost {format_usd(exact_usd(limit))} is less than one image costs: "
            f"{format_usd(exact_usd(first.usd or 0))} USD ({first.source}).",
            field="max_cost",
        )


def check_known_prices(prices: Sequence[ImagePrice | None]) -> None:
    """Raise InputError if a price is not known, without which no limit can be kept."""
    costs = ImageCosts(price for price in prices if price and price.usd is None)
    if costs.images:
        raise InputError(
            f"--max-cost cannot be kept: the price of {_images_text(costs.unknown)} is not known "
            f"({costs.sources}).",
            hint="The setting image_prices takes a file with prices; without --max-cost, --yes "
            "agrees to unknown ones.",
            field="max_cost",
        )


def exact_usd(usd: float) -> Decimal:
    """The amount as it is written, so that 3 times 0.1 is 0.3."""
    return Decimal(str(usd))


def format_usd(usd: Decimal) -> str:
    """An amount with two digits after the point, or as many as it has: none is rounded."""
    whole, _, digits = f"{usd:,f}".partition(".")
    return f"{whole}.{digits.rstrip('0').ljust(2, '0')}"


def _images_text(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"
