"""Budgets by endpoint.

Documented: 250 single and 50 bulk requests an hour for an application instance; over it only that endpoint is blocked,
and Retry-After gives seconds. Not documented: the kind of the window, and whether refused requests count. Here every
creation request that carries a good key counts, except those refused by the limit itself.
"""

from __future__ import annotations

import math
import threading
from collections import deque


class SlidingWindow:
    """At most `limit` requests in any stretch of `seconds`."""

    def __init__(self, limit: int, seconds: float):
        self.limit = limit
        self.seconds = seconds
        self._times = deque()

    def admit(self, now: float) -> float:
        """Count one request and return 0, or return the seconds to wait without counting it."""
        while self._times and self._times[0] <= now - self.seconds:
            self._times.popleft()
        if len(self._times) < self.limit:
            self._times.append(now)
            return 0
        return self._times[0] + self.seconds - now if self._times else self.seconds


class FixedWindow:
    """At most `limit` requests in a window, which begins with the first request after the one before it ended."""

    def __init__(self, limit: int, seconds: float):
        self.limit = limit
        self.seconds = seconds
        self._start = -math.inf
        self._count = 0

    def admit(self, now: float) -> float:
        """Count one request and return 0, or return the seconds to wait without counting it."""
        if now >= self._start + self.seconds:
            self._start, self._count = now, 0
        if self._count < self.limit:
            self._count += 1
            return 0
        return self._start + self.seconds - now


WINDOW_KINDS = {"sliding": SlidingWindow, "fixed": FixedWindow}


class RateLimits:
    """The budgets of one application instance, by the name of the operation; others are not limited."""

    def __init__(self, limits: dict, seconds: float, kind: str):
        self._lock = threading.Lock()
        self._windows = {operation: WINDOW_KINDS[kind](limit, seconds) for operation, limit in limits.items()}

    def admit(self, operation: str, now: float) -> int:
        """0 if the request may pass, else the whole seconds until one may."""
        window = self._windows.get(operation)
        if window is None:
            return 0
        with self._lock:
            return math.ceil(window.admit(now))
