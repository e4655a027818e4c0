"""Container health: exit code 0 while a connection to the broker is open.

Reads the kernel's table of connections instead of opening one more every half minute. A worker that has lost
its broker, or is not up yet, holds none; a worker that has died takes its container with it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

ESTABLISHED = "01"
DEFAULT_PORT = {"amqp": 5672, "amqps": 5671}


def broker_port() -> int:
    """The port in the worker's setting."""
    url = urlsplit(os.environ.get("RECON_AMQP_URL", "amqp://localhost/"))
    return url.port or DEFAULT_PORT.get(url.scheme, 5672)


def connected(port: int) -> bool:
    """Whether this network namespace holds an open connection to a remote `port`."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not Path(table).exists():
            continue
        for row in Path(table).read_text().splitlines()[1:]:
            _, _, remote, state, *_ = row.split()
            if state == ESTABLISHED and int(remote.rpartition(":")[2], 16) == port:
                return True
    return False


if __name__ == "__main__":
    sys.exit(0 if connected(broker_port()) else 1)
