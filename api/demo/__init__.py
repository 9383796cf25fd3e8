"""`goldleaves demo`: one metered month, told over real HTTP against a running gateway."""

from api.demo.people import DemoError
from api.demo.story import play
from api.demo.venue import running_venue, stack_venue

__all__ = ["DemoError", "play", "running_venue", "stack_venue"]
