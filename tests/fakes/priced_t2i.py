"""`python -m tests.fakes.priced_t2i ARGUMENTS` is t2i with a stub backend that bills each image.

PRICE in its environment is USD an image, empty for an unknown one; a prompt with `withheld` is
refused by a filter, one with `quota` before any work.
"""

import os
from collections.abc import Callable

from t2i_cli.backends import factory
from t2i_cli.cli.main import main
from t2i_cli.errors import ContentFilteredError, QuotaError, T2IError
from t2i_cli.image_price import ImagePrice
from t2i_cli.request import ResolvedRequest
from tests.fakes.stub_backend import StubBackend

SOURCE = "table: November 2026, made up"


def billed(usd: float | None) -> Callable[[ResolvedRequest], ImagePrice]:
    """One price for every image."""
    price = ImagePrice(usd=usd, source=SOURCE if usd is not None else "billed by nobody")
    return lambda request: price


def refusal(request: ResolvedRequest) -> T2IError | None:
    """The failure that a prompt asks for."""
    if "withheld" in request.prompt:
        return ContentFilteredError("The image was withheld.")
    return QuotaError("Too many requests.") if "quota" in request.prompt else None


if __name__ == "__main__":
    price = os.environ["PRICE"]
    backend = StubBackend(price=billed(float(price) if price else None), fails=refusal)
    factory.create_backend = lambda *_, **__: backend
    main()
