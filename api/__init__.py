"""Goldleaves: usage metering and billing inside Postgres. The Starlette sidecar and the `goldleaves` command."""
