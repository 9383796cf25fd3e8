"""`python -m api.stack`: the supervisor, as `goldleaves up` starts it. SIGTERM ends it, and nothing else with it."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from datetime import UTC, datetime
from threading import Event

from api.settings import SettingsError, load_settings
from api.stack.endpoints import StackError
from api.stack.state import StateDir
from api.stack.supervisor import Supervisor


def main() -> int:
    end = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    try:
        settings = load_settings()
        state = StateDir(settings.state_dir)
        secrets = state.read_secrets()
        if secrets is None:
            raise StackError("The stack was never up. Run `goldleaves up` first.")
        Supervisor(settings, state, secrets, _log).run(end)
    except (SettingsError, StackError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _log(event: str) -> None:
    with suppress(OSError):  # a full disk
        print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {event}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
