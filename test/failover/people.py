"""Who is to be invited, and how their rows come into being."""

from __future__ import annotations

import random
from typing import List, NamedTuple

WAYS = ("trigger", "function", "insert")
ORGANIZATIONS = 40

# How Clerk treats the request for an address, by the fake's names for it, and how often.  Slow ones leave requests in
# flight when the leader fails; a lost answer leaves a row whose outcome is unknown.
TREATMENTS = (("x-slow-150", 40), ("x-slow-1500", 15), ("x-drop-after-once", 3), ("x-503-after-once", 3), ("", 39))
ROLLED_BACK_IN_A_HUNDRED = 8
ABANDONED_IN_A_HUNDRED = 25


class Person(NamedTuple):
    """Each has an address of its own."""

    email: str
    organization: str
    way: str
    rolled_back: bool
    persistent: bool  # whether its client tries again when it cannot know whether it has succeeded


def make_people(invitations: int, chance: random.Random) -> List[Person]:
    """As many as are to be invited, and beyond them those whose transactions roll back."""
    people: List[Person] = []
    wanted = 0
    while wanted < invitations:
        rolled_back = chance.randrange(100) < ROLLED_BACK_IN_A_HUNDRED
        wanted += not rolled_back
        people.append(_person(len(people), rolled_back, chance))
    return people


def _person(number: int, rolled_back: bool, chance: random.Random) -> Person:
    names, weights = zip(*TREATMENTS)
    treatment = chance.choices(names, weights)[0]
    return Person(
        email=f"{treatment}--p{number}@example.com" if treatment else f"p{number}@example.com",
        organization=f"org_{chance.randrange(ORGANIZATIONS)}",
        way=chance.choice(WAYS),
        rolled_back=rolled_back,
        persistent=chance.randrange(100) >= ABANDONED_IN_A_HUNDRED,
    )


# The trigger enqueues some of them, and their clients the others.
SCHEMA = """
CREATE EXTENSION clerk_invite;
CREATE TABLE people (email text PRIMARY KEY, organization text NOT NULL, inviter text, way text NOT NULL,
    tries int NOT NULL DEFAULT 1);
CREATE TRIGGER invite AFTER INSERT ON people FOR EACH ROW WHEN (NEW.way = 'trigger')
    EXECUTE FUNCTION clerk_invitation_trigger('organization', 'inviter', 'email', '=org:member');
"""

# That it is there already must not be believed before it has been confirmed like any other commit, so this writes.
ADD_PERSON = """
INSERT INTO people (email, organization, way) VALUES (%s, %s, %s)
ON CONFLICT (email) DO UPDATE SET tries = people.tries + 1 RETURNING tries
"""

ENQUEUE = {
    "function": "SELECT clerk_enqueue_organization_invitation(%s, NULL, %s, 'org:member')",
    "insert": "INSERT INTO clerk_invitation_outbox (organization_id, email_address, role) VALUES (%s, %s, 'org:member')",
}
