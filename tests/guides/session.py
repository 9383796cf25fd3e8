"""Runs Python snippets one after the other in one namespace: a block may use what those before it have made.

Reads {"code", "environment"} a line, writes {"output", "failed"} a line.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from typing import Any


def main() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line in sys.stdin:
        request = json.loads(line)
        os.environ.update(request["environment"])
        output, failed = io.StringIO(), False
        with contextlib.redirect_stdout(output):
            try:
                exec(compile(request["code"], "snippet", "exec"), namespace)  # noqa: S102 - that is what it is for
            except Exception:
                failed = True
                output.write(traceback.format_exc())
        print(json.dumps({"output": output.getvalue(), "failed": failed}), flush=True)


if __name__ == "__main__":
    main()
