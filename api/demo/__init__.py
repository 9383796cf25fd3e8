"""`goldleaves demo`: one metered month, told over real HTTP against the running stack."""

from api.demo.people import DemoError
from api.demo.story import play

__all__ = ["DemoError", "play"]
