"""Load by wrk, the reference of HTTP benchmarks: a C program, so that little of the machine is spent on asking."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

CONNECTIONS: Final = 16
_MILLISECONDS: Final = {"us": 0.001, "ms": 1.0, "s": 1000.0}


def require_wrk() -> None:
    """Raises RuntimeError that says how to get it."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is missing. It is a package of that name: apt-get install wrk")


@dataclass
class Wrk:
    """One way to the API, loaded for a few seconds at a time."""

    name: str
    target: str
    headers: tuple[str, ...] = ()
    script: Path | None = None
    arguments: tuple[str, ...] = ()  # of the script
    seconds: float = 4
    connections: int = CONNECTIONS
    answered: int = 0
    slowest: list[float] = field(default_factory=list)  # of each run, what 99 of 100 requests took less than, in ms

    def run(self) -> float:
        """Requests a second. Raises when one of them did not succeed: an error page is quick to serve."""
        command = ["wrk", "-t1", "--latency", f"-c{self.connections}", f"-d{self.seconds:g}s"]
        command += [argument for header in self.headers for argument in ("-H", header)]
        if self.script is not None:
            command += ["-s", str(self.script)]
        command += [self.target, *(("--", *self.arguments) if self.arguments else ())]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
        requests, seconds = re.search(r"(\d+) requests in ([\d.]+)s", said), re.search(r"Requests/sec: +([\d.]+)", said)
        if requests is None or seconds is None or "Non-2xx" in said or "Socket errors" in said:
            raise RuntimeError(f"{self.target} was not served without errors:\n{said}")
        self.answered += int(requests[1])
        if (latency := re.search(r"99% +([\d.]+)(us|ms|s)", said)) is not None:
            self.slowest.append(float(latency[1]) * _MILLISECONDS[latency[2]])
        return float(seconds[1])
