"""One request from arrival to reply, in the order Clerk looks at things.

Documented: the key is checked before the path. The rest of the order is inferred.
"""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass
from typing import List, NamedTuple, Optional, Tuple

from .behaviours import Chooser, misbehave
from .contract import Contract, Violation
from .errors import ClerkError
from .http_types import Reply, Request
from .ledger import Clock, Invitation, Ledger
from .memory import Memory
from .normalizing import normalizer
from .operations import Call, find_operation, refusal
from .rate_limit import RateLimits


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
    status_reading: str
    ignored_order: Optional[str]
    any_client: bool


class Outcome(NamedTuple):
    """What became of a request: the reply, and what the journal wants to know besides."""

    reply: Reply
    created: List[Invitation]
    behaviour: Optional[str]
    violations: List[str]


class Instance:
    """One Clerk application instance: everything that `reset` forgets."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.clock = Clock(settings.clock_offset)
        self.contract = Contract(settings.status_reading, settings.any_client)
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
        call, violation = self._read(request)
        violations = [violation.text] if violation else []
        try:
            self._admit(request, call, violation)
        except ClerkError as error:
            return Outcome(refusal(error), [], None, violations)
        behaviour = self._instance.chooser.choose(call)
        reply = misbehave(behaviour, call) if behaviour else call.perform()
        return Outcome(reply, call.created, behaviour, violations + call.violations)

    def _read(self, request: Request) -> Tuple[Optional[Call], Optional[Violation]]:
        """The call that a request makes, if it makes one, and how it violates the contract, if it does."""
        instance = self._instance
        try:
            operation, parameters = find_operation(request.method, request.path)
        except ClerkError as error:
            return None, Violation("there is no such operation", error)
        violation = instance.contract.check_request(operation.name, parameters, request)
        return Call(operation, parameters, request, instance), violation

    def _admit(self, request: Request, call: Optional[Call], violation: Optional[Violation]):
        """Raise if the request is refused before its body matters."""
        if self._instance.down:
            raise ClerkError("maintenance_mode")
        self._check_key(request)
        if violation:
            raise violation.refusal
        wait = self._instance.rate_limits.admit(call.operation.name, time.monotonic())
        if wait:
            raise ClerkError("too_many_requests", headers=[("Retry-After", str(wait))])

    def _check_key(self, request: Request):
        given = request.headers.get("authorization")
        if given is None:
            raise ClerkError("authentication_invalid")
        if not given.startswith("Bearer "):
            raise ClerkError("authorization_header_format_invalid")
        if not self.is_authorized(request):
            raise ClerkError("clerk_key_invalid")
