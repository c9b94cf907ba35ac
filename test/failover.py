#!/usr/bin/env python3
"""Run the campaign of failovers, as root and as the first process of namespaces of its own; see failover.sh.

Processes whose parents have ended become children of the first one, which must take notice when they end: Patroni
waits until a server that it has stopped is gone, and does not start one before.
"""

import os
import sys

sys.dont_write_bytecode = True


def adopt(child: int) -> int:
    """Wait until the child ends, for all others too, and return its status."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1


if __name__ == "__main__":
    campaign = os.fork()
    if campaign:
        sys.exit(adopt(campaign))
    from failover.campaign import main

    sys.exit(main(sys.argv[1:]))
