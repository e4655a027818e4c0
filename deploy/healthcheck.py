"""Container health: exit code 0 while the worker says that it is well; it prints what the worker says.

A worker that is not up yet, or has lost its broker or its engine, says so itself; one that has died takes its
container with it.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request

DEFAULT_PORT = "8081"
TIMEOUT_S = 5.0
WELL = ("ok", "stopping")


def main() -> int:
    """Ask the worker of this container."""
    port = os.environ.get("RECON_HEALTH_PORT", DEFAULT_PORT)
    if port == "0":
        sys.stdout.write("RECON_HEALTH_PORT is 0: nobody can ask\n")
        return 0
    host = os.environ.get("RECON_HEALTH_HOST", "127.0.0.1")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    host = f"[{host}]" if ":" in host else host
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the container has
    try:
        with direct.open(f"http://{host}:{port}/health", timeout=TIMEOUT_S) as answer:
            text = answer.read().decode()
        well = json.loads(text)["status"] in WELL
    except (OSError, ValueError, KeyError) as error:
        sys.stdout.write(f"no answer: {error}\n")
        return 1
    sys.stdout.write(text + "\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
