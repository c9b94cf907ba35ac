"""The campaign itself: one cluster, its faults, and the verdict."""

from __future__ import annotations

import argparse
import os
import pwd
import random
import time
from typing import List

from .clerk import FakeClerk, Others
from .clients import Flow, Silence, query
from .cluster import Cluster, Place, Programs, wait_until
from .faults import Fault, choose_faults
from .network import User, build_networks
from .people import SCHEMA, Person, make_people
from .report import Round, table
from .verdict import OPEN_STATES, OUTBOX_QUERY, RESIDUE, Row, Verdict

KEY = "sk_test_fakeclerk000000000000000000000000000"
CLIENTS = 8
# People come for longer than a leader takes to be replaced.
SECONDS_OF_PEOPLE = 16

# Of those of a round, so many come at once just before its fault, so that it meets a sender that is busy.
BURST_IN_A_HUNDRED = 35
BURSTS_PER_SECOND = 1000

# A tenth of the defaults, so that pauses and partitions outlast them as an hour's would the defaults.  Budgets are not
# what this is about, but their ratio decides who shares a request.
CLERK_SETTINGS = """
shared_preload_libraries = '{library}'
clerk_invite.api_url = '{url}'
clerk_invite.ca_file = '{certificate}'
clerk_invite.secret_key_file = '{key_file}'
clerk_invite.single_requests_per_hour = 250000
clerk_invite.bulk_requests_per_hour = 50000
clerk_invite.connect_timeout = '1s'
clerk_invite.request_timeout = '3s'
clerk_invite.verify_delay = '3s'
clerk_invite.retry_delay = '200ms'
clerk_invite.retry_delay_max = '2s'
"""

# How long Clerk must have been asked nothing for all to be over: longer than any delay above, and than what a node
# that has been cut off takes to send again what was lost.
QUIET_SECONDS = 15


class Campaign:
    """In the mode sync or async."""

    def __init__(self, options: argparse.Namespace, mode: str):
        self._mode = mode
        self._judged_as = options.judge_as or mode
        self._chance = random.Random(f"{options.seed} {mode}")
        self._people = make_people(options.invitations, self._chance)
        self._faults = choose_faults(options.failovers, self._chance)
        self._place = _place(options, mode)
        self._rounds: List[Round] = []
        self._clerk = FakeClerk(self._place, options.test_folder, KEY)
        self._cluster = Cluster(self._place, self._settings(options), mode == "sync")
        self._others = Others(self._clerk, accepted=10, revoked=10, seed=options.seed)

    def run(self) -> bool:
        """Whether all is as it should be."""
        self._cluster.start()
        self._query(SCHEMA)
        self._cluster.wait_until_healthy()
        flow = Flow({node.name: node.client_address() for node in self._cluster.nodes}, CLIENTS)
        self._others.start()
        for number, fault in enumerate(self._faults):
            self._run_round(number, fault, flow)
        flow.stop()
        self._wait_until_final()
        self._others.stop()
        verdict = self._verdict(flow)
        self._report(flow, verdict)
        self._cluster.stop()
        self._clerk.stop()
        return not verdict.faults()

    def _run_round(self, number: int, fault: Fault, flow: Flow):
        began = time.time()
        share = self._share(number)
        burst = len(share) * BURST_IN_A_HUNDRED // 100
        flow.feed(share[burst:], len(share[burst:]) / SECONDS_OF_PEOPLE)
        time.sleep(self._chance.uniform(1, 4))
        leader = self._cluster.wait_for_leader()
        flow.feed(share[:burst], BURSTS_PER_SECOND)
        time.sleep(self._chance.uniform(0, 0.7))
        struck_at = time.time()
        fault.strike(self._cluster, leader)
        successor = self._cluster.wait_for_leader(but=leader)
        led_at = time.time()
        time.sleep(self._chance.uniform(0, 4))
        fault.end(leader)
        self._cluster.wait_until_healthy()
        wait_until("the people of this round are there", flow.is_done, 180)
        self._rounds.append(Round(fault.kind, struck_at, began, time.time()))
        self._say(
            f"{number + 1}/{len(self._faults)}: {leader.name} {fault.kind}, "
            f"{successor.name} leads after {led_at - struck_at:.1f} s, whole after {time.time() - struck_at:.1f} s"
        )

    def _share(self, number: int) -> List[Person]:
        count = len(self._faults)
        first, last = (len(self._people) * each // count for each in (number, number + 1))
        return self._people[first:last]

    def _wait_until_final(self):
        states = ", ".join(f"'{state}'" for state in OPEN_STATES)
        unfinished = f"SELECT count(*) FROM clerk_invitation_outbox WHERE state IN ({states})"
        wait_until("every row is final", lambda: self._query(unfinished) == [(0,)], 180)
        wait_until("Clerk is asked nothing any more", self._is_quiet, 180)

    def _is_quiet(self) -> bool:
        size = self._clerk.journal_size()
        time.sleep(QUIET_SECONDS)
        return size == self._clerk.journal_size()

    def _verdict(self, flow: Flow) -> Verdict:
        rows = [Row(*columns) for columns in self._query(OUTBOX_QUERY)]
        return Verdict(
            self._people,
            flow.record,
            rows,
            self._clerk.invitations(),
            list(self._clerk.creations()),
            synchronous=self._judged_as == "sync",
        )

    def _report(self, flow: Flow, verdict: Verdict):
        states = ", ".join(f"{count} {state}" for state, count in sorted(verdict.states.items()))
        print(f"\n{table(self._rounds, flow.record, verdict)}\n")
        self._say(f"outbox of the last leader: {states}; invitations created: {len(self._clerk.invitations())}")
        if self._mode == "async":
            residue = ", ".join(f"{len(verdict.found(kind))} {kind}" for kind in RESIDUE)
            self._say(f"residue: {residue}; {verdict.lost_but_invited()} of the lost rows were invited")
        for fault in verdict.faults()[:50]:
            self._say(f"FAULT: {fault.kind}: {fault.email} at {fault.time:.3f}")
        self._say(f"{len(verdict.faults())} faults found")

    def _query(self, sql: str):
        """At the leader, whichever that is when it answers."""

        def attempt():
            leader = self._cluster.leader()
            try:
                return [query(leader.client_address(), sql)] if leader else None
            except Silence:
                return None

        return wait_until("the leader answers", attempt, 60)[0]

    def _settings(self, options: argparse.Namespace) -> str:
        key_file = os.path.join(self._place.folder, "clerk.key")
        with open(key_file, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(KEY + "\n")
        os.chown(key_file, self._place.user.uid, self._place.user.gid)
        return options.library_settings + "\n" + CLERK_SETTINGS.format(
            library="$libdir/clerk_invite" if "extension_destdir" in options.library_settings else "clerk_invite",
            url=self._clerk.url,
            certificate=self._clerk.certificate,
            key_file=key_file,
        )

    def _say(self, text: str):
        print(f"{self._mode}: {text}", flush=True)


def _place(options: argparse.Namespace, mode: str) -> Place:
    account = pwd.getpwnam(options.user)
    folder = os.path.join(options.folder, mode)
    os.mkdir(folder, 0o755)
    os.chown(folder, account.pw_uid, account.pw_gid)
    programs = Programs(options.bindir, options.etcd, options.patroni, options.patronictl)
    return Place(User(account.pw_uid, account.pw_gid, folder), folder, programs)


def main(arguments: List[str]) -> int:
    options = _parse_options(arguments)
    modes = ["sync", "async"] if options.mode == "both" else [options.mode]
    print(f"seed {options.seed}", flush=True)
    build_networks()
    # Every one of them is run and reported.
    results = [Campaign(options, mode).run() for mode in modes]
    return 0 if all(results) else 1


def _parse_options(arguments: List[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="failover.sh")
    add = parser.add_argument
    add("--invitations", type=int, default=2000)
    add("--failovers", type=int, default=20)
    add("--mode", choices=("sync", "async", "both"), default="both")
    add("--seed", type=int, default=random.SystemRandom().randrange(1000000))
    add("--judge-as", choices=("sync",), help="with --mode async: accept no residue, to see that there is some")
    for name in ("user", "folder", "test-folder", "bindir", "etcd", "patroni", "patronictl", "library-settings"):
        add("--" + name, required=True, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


