"""`goldleaves demo`: one metered month, told over real HTTP against the running stack."""

from api.demo.story import play

__all__ = ["play"]
