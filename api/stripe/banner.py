"""What an answer says of the account at Stripe: whether there is one, and whether money moves in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from api.stripe.client import Stripe

NOT_CONFIGURED: Final = "Payments are not set up here yet: the provider has given no key of Stripe (STRIPE_SECRET_KEY)."
TEST_MODE: Final = "Test mode: no money moves. Pay with a test card, such as 4242 4242 4242 4242."


@dataclass(frozen=True, slots=True)
class Account:
    """`stripe` None: there is no key, and nothing is asked of Stripe."""

    stripe: Stripe | None
    publishable_key: str | None
    app_url: str

    def said(self) -> dict[str, object]:
        if self.stripe is None:
            return {"configured": False, "test_mode": None, "banner": NOT_CONFIGURED}
        is_test = not self.stripe.is_live
        return {"configured": True, "test_mode": is_test, "banner": TEST_MODE if is_test else None}
