"""Clients that add people, and reconnect to whichever node takes writes."""

from __future__ import annotations

import queue
import select
import threading
import time
from collections import defaultdict
from typing import Dict, List, NamedTuple, Optional, Sequence

import psycopg2
import psycopg2.extensions

from .people import ADD_PERSON, ENQUEUE, Person

# A server that is stopped or out of reach says nothing, so clients have limits of their own.
_CONNECT_SECONDS = 2.0
_STATEMENT_SECONDS = 5.0

ACKNOWLEDGED, ROLLED_BACK, IN_DOUBT, NOT_COMMITTED = "acknowledged", "rolled back", "in doubt", "not committed"

# With this WARNING, COMMIT succeeds although no standby has confirmed it.
_NOT_REPLICATED = "might not have been replicated"


class Try(NamedTuple):
    """A transaction for a person, and what its client knows of it."""

    result: str
    time: float
    node: Optional[str]


class Record:
    """All that clients have tried."""

    def __init__(self):
        self._lock = threading.Lock()
        self.tries: Dict[str, List[Try]] = defaultdict(list)
        self.acknowledgments: List[float] = []

    def add(self, person: Person, result: str, node: Optional[str]):
        with self._lock:
            now = time.time()
            self.tries[person.email].append(Try(result, now, node))
            if result == ACKNOWLEDGED:
                self.acknowledgments.append(now)

    def acknowledged_at(self, email: str) -> Optional[float]:
        return next((each.time for each in self.tries[email] if each.result == ACKNOWLEDGED), None)

    def count(self, result: str, since: float, until: float) -> int:
        with self._lock:
            return sum(
                each.result == result and since <= each.time < until for tries in self.tries.values() for each in tries
            )

    def longest_silence(self, since: float, until: float) -> float:
        """Between two acknowledgments, of which the second is in this period."""
        with self._lock:
            times = sorted(each for each in self.acknowledgments if each < until)
        return max((b - max(a, since) for a, b in zip(times, times[1:]) if b >= since), default=0.0)


class Silence(Exception):
    """The server does not answer."""


def _wait(connection):
    """As psycopg2 waits, but not for ever.  A connection is of no use after it."""
    deadline = time.monotonic() + (_STATEMENT_SECONDS if connection.status else _CONNECT_SECONDS)
    while True:
        state = connection.poll()
        if state == psycopg2.extensions.POLL_OK:
            return
        readers = [connection] if state == psycopg2.extensions.POLL_READ else []
        writers = [connection] if state == psycopg2.extensions.POLL_WRITE else []
        left = deadline - time.monotonic()
        if left <= 0 or not any(select.select(readers, writers, [], left)):
            raise Silence()


psycopg2.extensions.set_wait_callback(_wait)


class Stop(Exception):
    """The campaign is over."""


class Client(threading.Thread):
    """One session at a time, which stays with its node until that fails it."""

    def __init__(self, addresses: Dict[str, str], work: "queue.Queue", record: Record, stop: threading.Event):
        super().__init__(daemon=True)
        self._addresses = addresses
        self._work = work
        self._record = record
        self._stop_event = stop
        self._connection = None
        self._node = next(iter(addresses))
        self.error: Optional[BaseException] = None

    def run(self):
        try:
            while True:
                person = self._next_person()
                self._add(person)
                self._work.task_done()
        except Stop:
            pass
        except BaseException as error:  # the campaign looks at it
            self.error = error

    def _next_person(self) -> Person:
        while not self._stop_event.is_set():
            try:
                return self._work.get(timeout=0.2)
            except queue.Empty:
                pass
        raise Stop()

    def _add(self, person: Person):
        while True:
            self._connect()
            result = self._try(person)
            self._record.add(person, result, self._node)
            if result in (ACKNOWLEDGED, ROLLED_BACK) or (result == IN_DOUBT and not person.persistent):
                return

    def _try(self, person: Person) -> str:
        result = NOT_COMMITTED
        connection = self._connection
        try:
            with connection.cursor() as cursor:
                cursor.execute(ADD_PERSON, (person.email, person.organization, person.way))
                if cursor.fetchone()[0] == 1 and person.way in ENQUEUE:
                    cursor.execute(ENQUEUE[person.way], (person.organization, person.email))
            if person.rolled_back:
                result = ROLLED_BACK
                connection.rollback()
                return result
            result = IN_DOUBT
            connection.commit()
            if any(_NOT_REPLICATED in notice for notice in connection.notices):
                self._disconnect()
                return IN_DOUBT
            return ACKNOWLEDGED
        except (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.InternalError, Silence):
            self._disconnect()
            return result
        except psycopg2.Error as error:
            # A standby refuses to write, which an old leader can have become.
            if error.pgcode != "25006":
                raise
            self._disconnect()
            return NOT_COMMITTED

    def _connect(self):
        """To the node that it had, if that takes writes, else to another; again until there is one."""
        while not self._connection:
            others = [name for name in self._addresses if name != self._node]
            for name in [self._node, *others]:
                if self._stop_event.is_set():
                    raise Stop()
                self._connection = connect(self._addresses[name])
                if self._connection:
                    self._node = name
                    return
            time.sleep(0.1)

    def _disconnect(self):
        self._connection.close()
        self._connection = None


def connect(address: str, target: str = "read-write"):
    """None if it is not there or does not take writes."""
    try:
        return psycopg2.connect(
            host=address,
            port=5432,
            user="postgres",
            dbname="postgres",
            target_session_attrs=target,
            keepalives_idle=2,
            keepalives_interval=1,
            keepalives_count=3,
        )
    except (psycopg2.Error, Silence):
        return None


def query(address: str, sql: str) -> Sequence[tuple]:
    """Rows from a node that takes writes."""
    connection = connect(address)
    if connection is None:
        raise Silence()
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


class Flow:
    """People for the clients, at a pace that outlasts a failover."""

    def __init__(self, addresses: Dict[str, str], clients: int):
        self.record = Record()
        self._work: "queue.Queue" = queue.Queue()
        self._stop = threading.Event()
        self._clients = [Client(addresses, self._work, self.record, self._stop) for _ in range(clients)]
        self._feeders: List[threading.Thread] = []
        for client in self._clients:
            client.start()

    def feed(self, people: Sequence[Person], per_second: float):
        feeder = threading.Thread(target=self._feed, args=(people, per_second), daemon=True)
        self._feeders.append(feeder)
        feeder.start()

    def is_done(self) -> bool:
        for client in self._clients:
            if client.error:
                raise client.error
        return not any(feeder.is_alive() for feeder in self._feeders) and not self._work.unfinished_tasks

    def stop(self):
        self._stop.set()
        for client in self._clients:
            client.join(30)

    def _feed(self, people: Sequence[Person], per_second: float):
        for person in people:
            if self._stop.wait(1 / per_second):
                return
            self._work.put(person)
