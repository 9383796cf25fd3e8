"""Stripe: its webhooks come in, usage goes out, checkout and portal lie between. What it means says sql/stripe/."""
