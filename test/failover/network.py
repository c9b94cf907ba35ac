"""Machines that are network namespaces, on two networks that can be cut like cables.

The networks are bridges in the namespace of the campaign itself, which has nothing else: what listens on them cannot be
reached from the machine. A cut disables the machine's port of a bridge. Packets vanish then, in both directions and
without a word to either side, while the link stays up, as behind a switch that has died.
"""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Dict, List, Sequence

# Etcd, replication and Patroni's own interface on one network, clients and Clerk on the other.
NETWORKS = {"cluster": "10.77.1", "public": "10.77.2"}
_DISABLED, _FORWARDING = "0", "3"


def run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, universal_newlines=True).stdout


def build_networks():
    run("ip", "link", "set", "lo", "up")
    for name, prefix in NETWORKS.items():
        run("ip", "link", "add", name, "type", "bridge")
        run("ip", "address", "add", f"{prefix}.1/24", "dev", name)
        run("ip", "link", "set", name, "up")


def own_address(network: str) -> str:
    return NETWORKS[network] + ".1"


class User:
    """Whose processes servers are: they refuse to run as root."""

    def __init__(self, uid: int, gid: int, home: str):
        self.uid, self.gid, self.home = uid, gid, home

    def command(self, *command: str) -> List[str]:
        identity = [f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        return ["setpriv", *identity, "--", *command]


class Machine:
    """A namespace with an address in each network, and the processes that have been started there."""

    def __init__(self, name: str, number: int):
        self.name = name
        self._host_number = 10 + number
        # Keeps the namespace, and is no part of the machine that can fail.
        self._keeper = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE)
        self._keeper.stdout.readline()
        self._namespace = f"/proc/{self._keeper.pid}/ns/net"
        self._run("ip", "link", "set", "lo", "up")
        for network in NETWORKS:
            self._connect(network)

    def address(self, network: str) -> str:
        return f"{NETWORKS[network]}.{self._host_number}"

    def command(self, *command: str) -> List[str]:
        return ["nsenter", f"--net={self._namespace}", "--", *command]

    def cut(self, *networks: str):
        self._set_ports(networks, _DISABLED)

    def mend(self, *networks: str):
        self._set_ports(networks, _FORWARDING)

    def signal_all(self, number: signal.Signals):
        """Again until no process is there that has not got it, as they may fork meanwhile."""
        reached: Dict[int, bool] = {}
        while True:
            processes = [pid for pid in self.processes() if pid not in reached]
            if not processes:
                return
            for pid in processes:
                reached[pid] = True
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass

    def remove(self):
        """Its links go with its namespace."""
        self._keeper.kill()
        self._keeper.wait()

    def processes(self) -> List[int]:
        """All in its namespace but the keeper; zombies, which have left it, are none of them."""
        inode = os.stat(self._namespace).st_ino
        found = []
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            try:
                if os.stat(f"/proc/{pid}/ns/net").st_ino == inode and pid != self._keeper.pid:
                    found.append(pid)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                # It has ended, or is ending: then nobody may look at it any more.
                pass
        return found

    def _connect(self, network: str):
        port = self._port(network)
        run("ip", "link", "add", port, "type", "veth", "peer", "name", network, "netns", str(self._keeper.pid))
        run("ip", "link", "set", port, "master", network, "up")
        self._run("ip", "address", "add", self.address(network) + "/24", "dev", network)
        self._run("ip", "link", "set", network, "up")

    def _port(self, network: str) -> str:
        return f"{network}-{self.name}"

    def _set_ports(self, networks: Sequence[str], state: str):
        for network in networks:
            run("bridge", "link", "set", "dev", self._port(network), "state", state)

    def _run(self, *command: str):
        run(*self.command(*command))
