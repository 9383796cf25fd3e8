"""Stripe: its webhooks come in, usage goes out, checkout and portal lie between. What any of it means says sql/stripe/."""
