"""Asks before images are made that are billed one by one, if they may cost more than 1 USD."""

from decimal import Decimal

from t2i_cli.errors import InputError
from t2i_cli.image_costs import ImageCosts
from t2i_cli.terminal.console import Console

MAX_UNASKED_USD = Decimal(1)
"""What images may cost without a question."""
ASSUMED_USD = Decimal("0.25")
"""What an unknown price is taken for by this question alone: above the dearest that is known."""


def confirm_costs(costs: ImageCosts, console: Console, *, agreed: bool) -> None:
    """Ask before images that may cost more than 1 USD, unless that was agreed to.

    Raises InputError on no, and where nobody can be asked.
    """
    if agreed or costs.known_usd + costs.unknown * ASSUMED_USD <= MAX_UNASKED_USD:
        return
    hint = "--yes agrees to the price" + ("." if costs.unknown else "; --max-cost USD limits it.")
    images = "1 image" if costs.images == 1 else f"{costs.images:,} images"
    price = costs.sum_text() if costs.known_usd else "a sum that is not known"
    question = f"{images} cost {price}, by an estimate ({costs.sources})."
    if not console.asks:
        raise InputError(f"{question} There is nobody to ask.", hint=hint)
    if not console.ask(f"{question} Go on?"):
        raise InputError("Declined; no image was made.", hint=hint)
