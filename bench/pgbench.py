"""Load by pgbench, which comes with Postgres: the statements of a script, prepared as PostgREST prepares them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Final

from api.stack.installations import binaries

CONNECTIONS: Final = 2


@dataclass
class Pgbench:
    """One script, run again and again for a few seconds at a time."""

    major: int
    database_url: str = field(repr=False)
    script: str
    statements: int  # those of a run of the script that count
    seconds: int = 4
    connections: int = CONNECTIONS
    warm_up: int = 0  # seconds before those, in which new sessions plan what they call

    def run(self) -> float:
        """Statements a second. Raises when one of them failed."""
        with tempfile.TemporaryDirectory(prefix="goldleaves-bench-") as directory:
            script = Path(directory, "script.sql")
            script.write_text(self.script)
            command = (
                str(binaries(self.major) / "pgbench"),
                *(
                    "--no-vacuum",
                    "--protocol=prepared",
                    f"--client={self.connections}",
                    f"--time={self.warm_up + self.seconds}",
                    "--progress=1",
                ),
                *(f"--file={script}", f"--dbname={self.database_url}"),
            )
            done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        reports = re.findall(r"^progress: ([\d.]+) s, ([\d.]+) tps", done.stderr, re.MULTILINE)
        rates = [float(rate) for second, rate in reports if float(second) > self.warm_up + 0.5]
        if not self.warm_up:
            rates = [float(rate) for rate in re.findall(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)]
        if done.returncode != 0 or not any(rates):
            raise RuntimeError(f"pgbench failed:\n{done.stdout}{done.stderr}")
        return mean(rates) * self.statements
