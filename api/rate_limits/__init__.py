"""How many requests a minute an organization may send, by its plan. docs/decisions/0027-rate-limits-by-the-minute.md"""
