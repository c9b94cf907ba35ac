"""What happens to a leader."""

from __future__ import annotations

import random
import signal
from typing import Callable, Dict, List

from .cluster import Cluster, Node, wait_until


class Fault:
    """Strikes a leader, and goes again once there is another."""

    kind = ""

    def strike(self, cluster: Cluster, leader: Node):
        raise NotImplementedError

    def end(self, leader: Node):
        """What an administrator does, or what goes by itself."""


class Kill(Fault):
    """SIGKILL of PostgreSQL and Patroni at once; both are started again later."""

    kind = "killed"

    def strike(self, cluster: Cluster, leader: Node):
        leader.machine.signal_all(signal.SIGKILL)

    def end(self, leader: Node):
        wait_until("all processes are gone", lambda: not leader.machine.processes(), 30)
        leader.start()


class Pause(Fault):
    """SIGSTOP of all processes, which go on later as if nothing had happened."""

    kind = "paused"

    def strike(self, cluster: Cluster, leader: Node):
        leader.machine.signal_all(signal.SIGSTOP)

    def end(self, leader: Node):
        leader.machine.signal_all(signal.SIGCONT)


class Partition(Fault):
    """Cut off from etcd and the other nodes, but neither from its clients nor from Clerk."""

    kind = "partitioned"
    networks = ("cluster",)

    def strike(self, cluster: Cluster, leader: Node):
        leader.machine.cut(*self.networks)

    def end(self, leader: Node):
        leader.machine.mend(*self.networks)


class Isolation(Partition):
    """Cut off from everything, answers of Clerk included."""

    kind = "isolated"
    networks = ("cluster", "public")


class Switchover(Fault):
    """Planned, by patronictl."""

    kind = "switched over"

    def strike(self, cluster: Cluster, leader: Node):
        cluster.switch_over()


FAULTS: Dict[str, Callable[[], Fault]] = {
    fault.kind: fault for fault in (Kill, Pause, Partition, Isolation, Switchover)
}


def choose_faults(count: int, chance: random.Random) -> List[Fault]:
    """As many of each kind, in any order."""
    kinds = [kind for _ in range(count // len(FAULTS) + 1) for kind in FAULTS][:count]
    chance.shuffle(kinds)
    return [FAULTS[kind]() for kind in kinds]
