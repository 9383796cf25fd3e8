"""`python -m api.healthcheck`: exit code 0 when the sidecar on this host is well. For the container's engine.

Imports next to nothing, because it is run every few seconds.
"""

from __future__ import annotations

import http.client
import os
import sys

TIMEOUT_SECONDS = 4


def main() -> int:
    """Ask /health over loopback, on GATEWAY_PORT. What it answers is printed: engines keep the last few outputs."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", int(os.environ.get("GATEWAY_PORT") or 8000), timeout=TIMEOUT_SECONDS
    )
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        print(answer.read().decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException) as error:
        print(f"nobody answers: {error}")
        return 1
    finally:
        connection.close()
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
