"""Subcommands of `goldleaves stripe`."""
