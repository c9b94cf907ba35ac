"""One request from arrival to reply, in the order Clerk looks at things.

Documented: the key is checked before the path. The rest of the order is inferred.
"""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass
from typing import List, NamedTuple, Optional

from .behaviours import Chooser, misbehave
from .errors import ClerkError
from .http_types import Reply, Request
from .ledger import Clock, Invitation, Ledger
from .memory import Memory
from .normalizing import normalizer
from .operations import Call, find_operation, refusal
from .rate_limit import RateLimits

# Every dated version so far; these operations are the same in all of them (documented).
API_VERSIONS = (
    "2021-02-05",
    "2024-10-01",
    "2025-03-12",
    "2025-04-10",
    "2025-11-10",
    "2026-05-12",
)


@dataclass
class Settings:
    """What the command line decides."""

    secret_key: str
    organizations: List[str]
    membership_cap: Optional[int]
    single_limit: int
    bulk_limit: int
    window: float
    window_kind: str
    clock_offset: float
    normalizations: List[str]
    exact_filter: bool
    memory: Optional[str]
    latency: float


class Outcome(NamedTuple):
    """What became of a request: the reply, and what the journal wants to know besides."""

    reply: Reply
    created: List[Invitation]
    behaviour: Optional[str]


class Instance:
    """One Clerk application instance: everything that `reset` forgets."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.clock = Clock(settings.clock_offset)
        self._begin()

    def reset(self):
        Memory(self.settings.memory).forget()
        self._begin()

    def _begin(self):
        limits = {
            "CreateOrganizationInvitation": self.settings.single_limit,
            "CreateOrganizationInvitationBulk": self.settings.bulk_limit,
        }
        self.down = False
        self.ledger = Ledger(
            self.clock,
            self.settings.membership_cap,
            normalize=normalizer(self.settings.normalizations),
            filter_normalizes=not self.settings.exact_filter,
            memory=Memory(self.settings.memory),
        )
        self.rate_limits = RateLimits(limits, self.settings.window, self.settings.window_kind)
        self.chooser = Chooser()


class Api:
    """Answers everything under /v1, and whatever else is not the control endpoints'."""

    def __init__(self, instance: Instance):
        self._instance = instance

    def is_authorized(self, request: Request) -> bool:
        wanted = f"Bearer {self._instance.settings.secret_key}"
        given = request.headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), wanted.encode())

    def answer(self, request: Request) -> Outcome:
        """The request's outcome. What it changes has changed by then; nothing has been sent yet."""
        try:
            call = self._admit(request)
        except ClerkError as error:
            return Outcome(refusal(error), [], None)
        behaviour = self._instance.chooser.choose(call)
        reply = misbehave(behaviour, call) if behaviour else call.perform()
        return Outcome(reply, call.created, behaviour)

    def _admit(self, request: Request) -> Call:
        """The call a request makes, unless it is refused before its body matters."""
        if self._instance.down:
            raise ClerkError("maintenance_mode")
        self._check_key(request)
        self._check_version(request)
        operation, parameters = find_operation(request.method, request.path)
        wait = self._instance.rate_limits.admit(operation.name, time.monotonic())
        if wait:
            raise ClerkError("too_many_requests", headers=[("Retry-After", str(wait))])
        return Call(operation, parameters, request, self._instance.ledger, self._instance.settings.organizations)

    def _check_key(self, request: Request):
        given = request.headers.get("authorization")
        if given is None:
            raise ClerkError("authentication_invalid")
        if not given.startswith("Bearer "):
            raise ClerkError("authorization_header_format_invalid")
        if not self.is_authorized(request):
            raise ClerkError("clerk_key_invalid")

    @staticmethod
    def _check_version(request: Request):
        """A request without the header gets the instance's default version (documented)."""
        if request.headers.get("clerk-api-version", API_VERSIONS[-1]) not in API_VERSIONS:
            raise ClerkError("api_version_invalid")
