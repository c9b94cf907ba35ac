"""Compares the outbox of the last leader with what Clerk has and with what clients know."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

from .clerk import ALREADY_THERE, Creation
from .clients import IN_DOUBT, Record
from .people import Person

OUTBOX_QUERY = "SELECT email_address, organization_id, state, invitation_id FROM clerk_invitation_outbox"
OPEN_STATES = ("queued", "sending", "verifying")


class Row(NamedTuple):
    """Of the outbox."""

    email: str
    organization: str
    state: str
    invitation: Optional[str]


class Finding(NamedTuple):
    """Something that should not be, or with asynchronous standbys may be, and when it came into being."""

    kind: str
    email: str
    time: float


# What is found, by the words that the report has for it.
LOST = "acknowledged, no row"
ORPHANED = "invited, no row"
CREATED_TWICE = "created twice"
ROLLED_BACK = "invited or a row, but rolled back"
ROWS_TWICE = "two rows"
OPEN = "not final"
UNTRUE = "not true to the ledger"
# Clerk's refusal prevented it.
REFUSED = "second creation refused"

# What docs/failover.md says of asynchronous standbys.
RESIDUE = (LOST, ORPHANED, CREATED_TWICE)


class Verdict:
    """What was found.  With synchronous standbys, none of the residue is accepted."""

    def __init__(
        self,
        people: Sequence[Person],
        record: Record,
        rows: Sequence[Row],
        invitations: Sequence[dict],
        creations: Sequence[Creation],
        synchronous: bool,
    ):
        self._people = people
        self._record = record
        self._synchronous = synchronous
        self._rows: Dict[str, List[Row]] = defaultdict(list)
        for row in rows:
            self._rows[row.email].append(row)
        self._invitations: Dict[str, List[dict]] = defaultdict(list)
        for invitation in invitations:
            self._invitations[invitation["email_address"]].append(invitation)
        self._creations = creations
        self.states = Counter(row.state for row in rows)
        self.findings = list(self._find())

    def faults(self) -> List[Finding]:
        accepted = {REFUSED} if self._synchronous else {REFUSED, *RESIDUE}
        return [finding for finding in self.findings if finding.kind not in accepted]

    def found(self, kind: str, since: float = 0, until: float = float("inf")) -> List[Finding]:
        return [each for each in self.findings if each.kind == kind and since <= each.time < until]

    def lost_but_invited(self) -> int:
        return sum(bool(self._invitations[each.email]) for each in self.found(LOST))

    def _find(self) -> Iterator[Finding]:
        for person in self._people:
            yield from self._of_person(person)
        known = {person.email for person in self._people}
        for email in {*self._rows, *self._invitations} - known:
            yield Finding(UNTRUE, email, 0)
        yield from self._refused()

    def _of_person(self, person: Person) -> Iterator[Finding]:
        email = person.email
        rows, invitations = self._rows[email], self._invitations[email]
        acknowledged = self._record.acknowledged_at(email)

        if person.rolled_back:
            if rows or invitations:
                yield Finding(ROLLED_BACK, email, self._last_try(email))
            return
        if acknowledged and not rows:
            yield Finding(LOST, email, acknowledged)
        if invitations and not rows:
            kind = ORPHANED if self._may_exist(email) else UNTRUE
            yield Finding(kind, email, invitations[0]["created_at"] / 1000)
        for invitation in invitations[1:]:
            yield Finding(CREATED_TWICE, email, invitation["created_at"] / 1000)
        if len(rows) > 1:
            yield Finding(ROWS_TWICE, email, self._last_try(email))
        for row in rows:
            if row.state in OPEN_STATES:
                yield Finding(OPEN, email, self._last_try(email))
            elif not self._is_true(person, row, invitations):
                yield Finding(UNTRUE, email, self._last_try(email))

    def _may_exist(self, email: str) -> bool:
        """Some transaction for it may have committed somewhere."""
        return self._record.acknowledged_at(email) is not None or any(
            each.result == IN_DOUBT for each in self._record.tries[email]
        )

    def _is_true(self, person: Person, row: Row, invitations: Sequence[dict]) -> bool:
        """Nobody but this outbox invites these people, so a row that it had all along knows what became of it."""
        if row.organization != person.organization:
            return False
        if row.state == "skipped" and not self._synchronous:
            return bool(invitations)
        return row.state == "sent" and any(
            row.invitation == each["id"] and each["organization_id"] == row.organization for each in invitations
        )

    def _refused(self) -> Iterator[Finding]:
        created = set()
        for creation in self._creations:
            if creation.invitation:
                created.add(creation.email)
            elif creation.code in ALREADY_THERE and creation.email in created:
                yield Finding(REFUSED, creation.email, creation.time)

    def _last_try(self, email: str) -> float:
        tries = self._record.tries[email]
        return tries[-1].time if tries else 0
