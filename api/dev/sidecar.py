"""Swap the running sidecar for one with the code that was just saved.

A successor waits with the libraries imported. It imports our code while the old one still serves; only when that went
well is the old one drained, and the successor takes its place, on the same port and spool.
"""

from __future__ import annotations

import socket
import sys
from contextlib import closing, suppress
from typing import Final

from api.dev.standby import LOAD, READY, SERVE
from api.stack.processes import find, is_running, remember, spawn, stop_main, wait_until_ready
from api.stack.stack import Stack

COMMAND: Final = (sys.executable, "-m", "api.dev.standby")
MAX_ANSWER_BYTES: Final = 64 * 1024


class CodeError(Exception):
    """The code that was saved cannot be imported: `path:line: what is wrong`. The old sidecar still serves."""


class Sidecar:
    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._successor = _Successor(stack)

    def close(self) -> None:
        self._successor.dismiss()

    def restart(self) -> None:
        """Raises CodeError, or StackError when the new sidecar does not start: then none runs."""
        if not is_running(self._successor.process):  # it was stopped together with the stack
            self.close()
            self._successor = _Successor(self._stack)
        successor = self._successor
        try:
            successor.load()
            state, part = self._stack.state, self._stack.part("sidecar")
            with state.locked():
                old = find(part.name, state)
                if old is not None:
                    stop_main(part.name, old, state)
                remember(part, successor.process, state, successor.log_offset)
                successor.serve()
                wait_until_ready(part, successor.process, state)
        finally:
            successor.dismiss()
            self._successor = _Successor(self._stack)


class _Successor:
    """One process in waiting."""

    def __init__(self, stack: Stack) -> None:
        self._control, theirs = socket.socketpair()
        with closing(theirs):
            spawned = spawn(stack.part("sidecar"), stack.state, COMMAND, theirs.fileno())
        self.process, self.log_offset = spawned.process, spawned.log_offset

    def load(self) -> None:
        """Let it import our code, which raises CodeError if that fails."""
        try:
            self._control.sendall(LOAD)
            answer = self._control.recv(MAX_ANSWER_BYTES)
        except OSError:
            answer = b""
        if answer != READY:
            raise CodeError(answer.decode() or "the new sidecar ended without a word")

    def serve(self) -> None:
        self._control.sendall(SERVE)

    def dismiss(self) -> None:
        """Let go of it. If it was not told to serve, it ends by itself."""
        self._control.close()
        if not is_running(self.process):
            with suppress(Exception):
                self.process.wait(timeout=0)
