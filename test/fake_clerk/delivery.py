"""Ways to send an answer, or not to.

Each is called with the client's `wire`, the answer's head (status line and headers) and its body. All have been written
to the journal before. A client that went away shows as an OSError, which the server expects.
"""

from __future__ import annotations

import collections
import threading
import time

TRICKLE_LENGTH = 100_000
HUGE_LENGTH = 64 * 1024 * 1024
_TRICKLE_SECONDS = 0.1
_CHUNK = b"a" * 65536
_LONGEST_MEETING_SECONDS = 60


class _Meetings(collections.defaultdict):
    """By the number of replies that meet, what they wait at."""

    def __missing__(self, number: int) -> threading.Barrier:
        return self.setdefault(number, threading.Barrier(number))


_meetings = _Meetings()


def whole(wire, head: bytes, body: bytes):
    wire.send(head + body)


def whole_then_close(wire, head: bytes, body: bytes):
    """Close a connection that was announced as kept: the client's next request meets a dead one."""
    wire.send(head + body)
    wire.close()


def half_of_body(wire, head: bytes, body: bytes):
    wire.send(head + body[: len(body) // 2])
    wire.close()


def nothing_then_close(wire, head: bytes, body: bytes):
    wire.close()


def nothing_then_reset(wire, head: bytes, body: bytes):
    wire.reset()


def nothing_until_client_leaves(wire, head: bytes, body: bytes):
    wire.wait_until_gone()
    wire.close()


def after_milliseconds(milliseconds: int):
    """A delivery that is complete, but late."""

    def late(wire, head: bytes, body: bytes):
        time.sleep(milliseconds / 1000)
        wire.send(head + body)

    return late


def together(number: int):
    """Deliveries that begin when so many are ready: their requests have all arrived, and none has its answer."""

    def meet(wire, head: bytes, body: bytes):
        try:
            _meetings[number].wait(_LONGEST_MEETING_SECONDS)
        except threading.BrokenBarrierError:
            _meetings.pop(number, None)
        wire.send(head + body)

    return meet


def trickle(wire, head: bytes, body: bytes):
    """One byte at a time, so that a client with only an idle timeout waits for hours."""
    wire.send(head)
    for _ in range(TRICKLE_LENGTH):
        time.sleep(_TRICKLE_SECONDS)
        wire.send(b" ")


def stream_huge(wire, head: bytes, body: bytes):
    """A long JSON string, made while it is sent."""
    wire.send(head + b'"')
    left = HUGE_LENGTH - 2
    while left > 0:
        piece = _CHUNK[:left]
        wire.send(piece)
        left -= len(piece)
    wire.send(b'"')
