"""Options of the hf backend."""

from dataclasses import dataclass

from t2i_cli.net.retry import RetryPolicy

AUTO = "auto"
"""The provider's name that stands for the first one of the user's order on the Hub."""


@dataclass(frozen=True, kw_only=True)
class HfOptions:
    """Options of the hf backend.

    `provider` is a provider's name on the Hub, or AUTO. `bill_to` is the organisation that pays,
    `None` for the token's own account. `retry_policy` applies to each image. `concurrency` is the
    maximum number of calls in flight. With `plan_only` no image is made, and a Hub that cannot be
    asked is done without.
    """

    retry_policy: RetryPolicy
    provider: str = AUTO
    bill_to: str | None = None
    concurrency: int | None = None
    plan_only: bool = False

    @property
    def payer(self) -> str:
        """Whom Hugging Face bills, as a noun in a sentence."""
        return f"the organisation {self.bill_to}" if self.bill_to else "your account"
