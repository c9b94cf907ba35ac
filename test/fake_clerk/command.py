"""The command line: listen, say where, run until told to stop."""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import ssl
import sys
import threading
from typing import Optional

from .api import Instance, Settings
from .behaviours import TABLE
from .contract import STATUS_READINGS, ViolationLog
from .journal import Journal
from .normalizing import NORMALIZATIONS
from .operations import SORT_KEYS
from .rate_limit import WINDOW_KINDS
from .server import FakeClerkServer

DEFAULT_KEY = "sk_test_fakeclerk000000000000000000000000000"

# JSON may be nested as deeply as 8 kB of metadata allow; each level costs Python some of both.
RECURSION_LIMIT = 20_000
THREAD_STACK_BYTES = 32 * 1024 * 1024


def main():
    options = _parse_options()
    _allow_deep_recursion()
    instance = Instance(_settings(options))
    journal = Journal(options.journal, options.secret_key)
    violations = ViolationLog(options.violations)
    server = FakeClerkServer(options.host, options.port, instance, journal, violations, _tls_context(options.tls))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if options.exit_with_stdin:
        threading.Thread(target=_wait_for_end_of_stdin, args=(stop,), daemon=True).start()
    print(server.server_address[1], flush=True)
    stop.wait()
    os._exit(0)  # threads may be in the middle of an answer that never ends


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fake_clerk.py",
        description="A stand-in for Clerk's Backend API. Prints its port once it listens.",
        epilog="An address x-NAME--anything@example.com misbehaves, with one of these patterns as NAME"
        " (-after and -once may follow): " + "  ".join(entry.pattern.pattern for entry in TABLE) + "\nAn invitation for"
        " name@accepts-N.example.com is accepted after N milliseconds, one for name@revokes-N.example.com is revoked.",
    )
    add = parser.add_argument
    add("--host", type=_private_address, default="127.0.0.1", help="with --tls, one of a test's own network as well")
    add("--port", type=int, default=0, help="0, the default: any free one")
    add("--tls", nargs=2, metavar=("CERT", "KEY"), help="serve https with these PEM files")
    add("--journal", metavar="FILE", help="append each request to this file, as one line of JSON")
    add(
        "--violations",
        metavar="FILE",
        help="append each violation of Clerk's contract to this file, as one line; a test expects it to stay empty",
    )
    add("--any-client", action="store_true", help="accept other headers than clerk_invite's")
    add("--secret-key", default=DEFAULT_KEY)
    add(
        "--organization",
        action="append",
        default=[],
        metavar="ID",
        help="an organization that exists; without any, all do except org_missing...",
    )
    add("--membership-cap", type=int, metavar="N", help="members plus pending invitations of an organization")
    add("--single-limit", type=int, default=250, metavar="N", help="single creations in a window")
    add("--bulk-limit", type=int, default=50, metavar="N", help="bulk creations in a window")
    add("--window", type=float, default=3600, metavar="SECONDS")
    add("--window-kind", choices=sorted(WINDOW_KINDS), default="sliding")
    add("--clock-offset", type=float, default=0, metavar="SECONDS", help="how much this Clerk's clock is ahead")
    add(
        "--normalize",
        action="append",
        default=[],
        choices=sorted(NORMALIZATIONS),
        help="how addresses are changed before they are looked at; may be given several times",
    )
    add("--exact-filter", action="store_true", help="the list's filter takes its address as it is")
    add("--memory", metavar="FILE", help="keep all that exists in this file, and begin with what is in it")
    add("--latency", type=float, default=0, metavar="SECONDS", help="between doing what was asked and answering")
    add(
        "--repeated-status",
        choices=STATUS_READINGS,
        default=STATUS_READINGS[0],
        help="what a list's repeated filter on the status means: a violation of the contract, all, the first, the last",
    )
    add(
        "--ignore-order",
        choices=sorted(SORT_KEYS),
        help="lists are sorted by this, the largest first, whatever order is asked for",
    )
    add("--exit-with-stdin", action="store_true", help="exit at the end of standard input")
    options = parser.parse_args()
    if not ipaddress.ip_address(options.host).is_loopback and not options.tls:
        parser.error("--host that is not a loopback address needs --tls")
    return options


def _private_address(text: str) -> str:
    address = ipaddress.ip_address(text)
    if address.is_unspecified or not address.is_private:
        raise argparse.ArgumentTypeError(f"{text} is not a private address")
    return text


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        secret_key=options.secret_key,
        organizations=options.organization,
        membership_cap=options.membership_cap,
        single_limit=options.single_limit,
        bulk_limit=options.bulk_limit,
        window=options.window,
        window_kind=options.window_kind,
        clock_offset=options.clock_offset,
        normalizations=options.normalize,
        exact_filter=options.exact_filter,
        memory=options.memory,
        latency=options.latency,
        status_reading=options.repeated_status,
        ignored_order=options.ignore_order,
        any_client=options.any_client,
    )


def _tls_context(files: Optional[list]) -> Optional[ssl.SSLContext]:
    if not files:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _allow_deep_recursion():
    sys.setrecursionlimit(RECURSION_LIMIT)
    threading.stack_size(THREAD_STACK_BYTES)


def _wait_for_end_of_stdin(stop: threading.Event):
    while os.read(0, 4096):
        pass
    stop.set()
