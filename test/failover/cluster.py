"""Etcd, and three nodes of PostgreSQL under Patroni."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Callable, Dict, List, NamedTuple, Optional

from .network import Machine, User, own_address

# Patroni's own limits for a leader that fails: its key expires after the first, and a leader that cannot reach etcd
# gives up after the last two or so.
DCS_SETTINGS = {"ttl": 10, "loop_wait": 2, "retry_timeout": 3, "maximum_lag_on_failover": 1048576}

POSTGRESQL_SETTINGS = """
fsync = off
wal_keep_size = '256MB'
wal_sender_timeout = '5s'
wal_receiver_timeout = '5s'
wal_retrieve_retry_interval = '500ms'
max_connections = 50
logging_collector = on
log_directory = '../log'
log_filename = 'postgresql.log'
log_line_prefix = '%m [%p] '
shared_buffers = '32MB'
"""

CLUSTER_NAME = "campaign"
PORT = 5432
REST_PORT = 8008
ETCD_PORT = 2379


class Programs(NamedTuple):
    """Where they are."""

    bindir: str  # PostgreSQL's
    etcd: str
    patroni: str
    patronictl: str


class Place(NamedTuple):
    """Where servers run: as whom, below which folder, with which programs."""

    user: User
    folder: str
    programs: Programs

    def start(self, name: str, command: List[str], machine: Optional[Machine] = None) -> subprocess.Popen:
        command = self.user.command(*command)
        if machine:
            command = machine.command(*command)
        with open(os.path.join(self.folder, name + ".log"), "ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, env=self.environment()
            )

    def environment(self) -> Dict[str, str]:
        kept = ("PATH", "PYTHONPATH", "LANG", "LC_ALL")
        return {**{name: os.environ[name] for name in kept if name in os.environ}, "HOME": self.folder}


def wait_until(sentence: str, condition: Callable[[], object], seconds: float):
    """What the condition returns once that is true."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"timed out after {seconds} s waiting until {sentence}")
        time.sleep(0.05)


def start_etcd(place: Place) -> subprocess.Popen:
    """One member, which does not fail: what a node cannot reach does not exist for it, however many there are."""
    client = f"http://{own_address('cluster')}:{ETCD_PORT}"
    process = place.start(
        "etcd",
        [
            place.programs.etcd,
            "--name=etcd",
            f"--data-dir={place.folder}/etcd",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=etcd=http://127.0.0.1:2380",
            "--unsafe-no-fsync",
            "--enable-v2",
        ],
    )
    wait_until("etcd is there", lambda: _get(client + "/health")[0] == 200, 30)
    return process


class Node:
    """A machine with Patroni and its PostgreSQL."""

    def __init__(self, place: Place, number: int, settings: str, synchronous: bool):
        self.name = f"node{number}"
        self.machine = Machine(self.name, number)
        self._place = place
        self._folder = os.path.join(place.folder, self.name)
        self.configuration = os.path.join(self._folder, "patroni.yml")
        os.mkdir(self._folder, 0o700)
        self._write("postgresql.base.conf", POSTGRESQL_SETTINGS + settings)
        # JSON is YAML.
        self._write("patroni.yml", json.dumps(self._patroni_settings(synchronous), indent=1))
        os.chown(self._folder, place.user.uid, place.user.gid)

    def start(self):
        self._place.start(
            self.name, [sys.executable, self._place.programs.patroni, self.configuration], self.machine
        )

    def is_primary(self) -> bool:
        """By what Patroni itself says of it."""
        return self._status("/primary") == 200

    def is_running(self) -> bool:
        return self._status("/health") == 200

    def is_synchronous(self) -> bool:
        return self._status("/synchronous") == 200

    def is_replica_of(self, leader: Node) -> bool:
        """Up to date with its present timeline, and not merely running."""
        if self._status("/replica") != 200:
            return False
        own, leaders = (each.report().get("timeline") for each in (self, leader))
        return own is not None and own == leaders and self.name in leader.streaming()

    def streaming(self) -> List[str]:
        return [
            each.get("application_name")
            for each in self.report().get("replication", ())
            if each.get("state") == "streaming"
        ]

    def report(self) -> dict:
        return _get(self._url("/patroni"))[1]

    def client_address(self) -> str:
        return self.machine.address("public")

    def _status(self, path: str) -> int:
        return _get(self._url(path))[0]

    def _url(self, path: str) -> str:
        return f"http://{self.client_address()}:{REST_PORT}{path}"

    def _write(self, name: str, text: str):
        path = os.path.join(self._folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chown(path, self._place.user.uid, self._place.user.gid)

    def _patroni_settings(self, synchronous: bool) -> dict:
        address = self.machine.address("cluster")
        etcd = f"{own_address('cluster')}:{ETCD_PORT}"
        everyone = ["local all all trust", "host all all all trust", "host replication all all trust"]
        return {
            "scope": CLUSTER_NAME,
            "name": self.name,
            "restapi": {"listen": f"0.0.0.0:{REST_PORT}", "connect_address": f"{address}:{REST_PORT}"},
            # Not etcd3: with that, Patroni 3.0 keeps what it has read before it was paused.
            "etcd": {"hosts": [etcd]},
            "bootstrap": {
                "dcs": {
                    **DCS_SETTINGS,
                    "synchronous_mode": synchronous,
                    "postgresql": {"use_pg_rewind": True, "use_slots": True},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums", "no-sync"],
            },
            "postgresql": {
                "listen": f"*:{PORT}",
                "connect_address": f"{address}:{PORT}",
                "data_dir": os.path.join(self._folder, "data"),
                "bin_dir": self._place.programs.bindir,
                "custom_conf": os.path.join(self._folder, "postgresql.base.conf"),
                "pgpass": os.path.join(self._folder, "pgpass"),
                "authentication": {"superuser": {"username": "postgres"}, "replication": {"username": "replicator"}},
                "parameters": {"unix_socket_directories": self._folder},
                "pg_hba": everyone,
                "remove_data_directory_on_rewind_failure": True,
                "remove_data_directory_on_diverged_timelines": True,
            },
        }


class Cluster:
    """The nodes, and what can be asked and done with all of them."""

    def __init__(self, place: Place, settings: str, synchronous: bool):
        self._place = place
        self._synchronous = synchronous
        self._etcd = start_etcd(place)
        self.nodes = [Node(place, number, settings, synchronous) for number in (1, 2, 3)]

    def start(self):
        """The first makes the cluster, and the others copy it."""
        self.nodes[0].start()
        wait_until("there is a leader", self.nodes[0].is_primary, 120)
        for node in self.nodes[1:]:
            node.start()
        self.wait_until_healthy()

    def stop(self):
        """Nothing of it is left."""
        for node in self.nodes:
            node.machine.signal_all(signal.SIGKILL)
            node.machine.remove()
        self._etcd.kill()
        self._etcd.wait()

    def leader(self, but: Optional[Node] = None) -> Optional[Node]:
        return next((node for node in self.nodes if node is not but and node.is_primary()), None)

    def wait_for_leader(self, but: Optional[Node] = None) -> Node:
        return wait_until("there is another leader", lambda: self.leader(but), 90)

    def wait_until_healthy(self) -> Node:
        """All nodes serve again, and the next leader would be one of them."""
        return wait_until("all nodes are healthy", self._healthy_leader, 180)

    def switch_over(self):
        configuration = self.nodes[0].configuration
        command = [sys.executable, self._place.programs.patronictl, "-c", configuration]
        done = subprocess.run(
            self._place.user.command(*command, "switchover", CLUSTER_NAME, "--force"),
            env=self._place.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
        )
        if done.returncode:
            raise RuntimeError("patronictl switchover failed: " + done.stdout)

    def _healthy_leader(self) -> Optional[Node]:
        leaders = [node for node in self.nodes if node.is_primary()]
        if len(leaders) != 1:
            return None
        others = [node for node in self.nodes if node is not leaders[0]]
        if not all(node.is_replica_of(leaders[0]) for node in others):
            return None
        if self._synchronous and not any(node.is_synchronous() for node in others):
            return None
        return leaders[0]


# Whatever proxy the environment names does not know these networks.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _get(url: str):
    """Status and document; (0, {}) if there is no answer."""
    try:
        with _opener.open(url, timeout=2) as answer:
            return answer.status, _document(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {}
    except (OSError, ValueError):
        return 0, {}


def _document(body: bytes) -> dict:
    try:
        return json.loads(body)
    except ValueError:
        return {}
