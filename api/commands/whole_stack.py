"""The stack that commands start and stop, and how they are stopped themselves."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from api.command_line import console
from api.settings import load_settings
from api.stack.progress import Progress
from api.stack.stack import Stack


def stack_here() -> Stack:
    return Stack(load_settings(), Progress(console))


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM unwind the block like Ctrl-C does, so that what it started is stopped."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
