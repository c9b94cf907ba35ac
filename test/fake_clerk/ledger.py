"""The invitations and members that exist, and the rules on what may be added to them."""

from __future__ import annotations

import base64
import itertools
import json
import re
import secrets
import string
import threading
import time
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Tuple

from .errors import ClerkError
from .memory import Memory
from .validation import InvitationRequest

MILLISECONDS_A_DAY = 24 * 60 * 60 * 1000
TICKET_ADDRESS = "https://clerk.example.com/v1/tickets/accept?ticket="

_ALPHANUMERIC = string.ascii_letters + string.digits

# What becomes of an invitation after so many milliseconds, as its address asks for.
_MEANWHILE = re.compile(r".*@(accepts|revokes)-(\d+)\..*", re.DOTALL)


class Clock:
    """Clerk's clock, which may differ from the client's by an offset, and can be set."""

    def __init__(self, offset_seconds: float = 0):
        self.offset = offset_seconds

    def seconds(self) -> float:
        return time.time() + self.offset

    def milliseconds(self) -> int:
        return int(self.seconds() * 1000)


@dataclass
class Invitation:
    """One organization invitation, pending until something happens to it."""

    sequence: int
    id: str
    organization_id: str
    request: InvitationRequest
    url: str
    created_at: int
    updated_at: int
    expires_at: int
    settled_status: Optional[str] = None
    origin: str = "client"  # or "control"
    created_really_at: int = 0  # by the machine's clock
    deleted: bool = False
    from_domain: bool = False

    def status(self, now: int) -> str:
        if self.settled_status:
            return self.settled_status
        return "pending" if now < self.expires_at else "expired"

    def is_pending(self, now: int) -> bool:
        return self.status(now) == "pending"

    def settle(self, status: str, now: int):
        self.settled_status = status
        self.updated_at = now

    def document(self, now: int) -> dict:
        """The invitation as Clerk shows it. The url of one that can no longer be accepted is null (inferred)."""
        return {
            "object": "organization_invitation",
            "id": self.id,
            "email_address": self.request.email_address,
            "role": self.request.role,
            "role_name": role_name(self.request.role),
            "organization_id": self.organization_id,
            "inviter_id": self.request.inviter_user_id,
            "public_inviter_data": public_inviter_data(self.request.inviter_user_id),
            "status": self.status(now),
            "public_metadata": self.request.public_metadata,
            "private_metadata": self.request.private_metadata,
            "url": self.url if self.is_pending(now) else None,
            "expires_at": self.expires_at,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
        }

    def reference(self) -> dict:
        """Which invitation this is, without its url, which is a secret."""
        return {
            "id": self.id,
            "email_address": self.request.email_address,
            "organization_id": self.organization_id,
        }


class Ledger:
    """All invitations ever created, and all members. Callers hold `lock` over a check and what follows from it."""

    def __init__(
        self,
        clock: Clock,
        membership_cap: Optional[int] = None,
        normalize: Callable[[str], str] = str,
        filter_normalizes: bool = True,
        memory: Optional[Memory] = None,
    ):
        self.clock = clock
        self.membership_cap = membership_cap
        self.normalize = normalize
        self._filter_normalizes = filter_normalizes
        self.lock = threading.RLock()
        self.invitations: List[Invitation] = []
        self.history: List[Invitation] = []  # with those whose organization was deleted
        self.clock_settings: List[Tuple[int, int]] = []  # when it was set by the machine's clock, and how far ahead, in ms
        self._sequence = itertools.count()
        self._by_id: Dict[str, Invitation] = {}
        self._by_address: Dict[Tuple[str, str], List[Invitation]] = {}
        self._members = set()
        self._deleted_organizations = set()
        self._memory = memory or Memory(None)
        self._recall()

    def create(
        self, organization_id: str, requests: List[InvitationRequest], origin: str = "client"
    ) -> List[Invitation]:
        """Create all, or none and raise (bulk is all-or-nothing: inferred, strongly)."""
        with self.lock:
            self._refuse_members(organization_id, requests)
            self._refuse_pending(organization_id, requests)
            self._refuse_over_cap(organization_id, len(requests))
            now = self.clock.milliseconds()
            created = [self._add(organization_id, request, now, origin) for request in requests]
            self._memory.note({"created": [vars(each) | {"request": vars(each.request)} for each in created]})
        for invitation in created:
            self._meanwhile(invitation)
        return created

    def find(self, invitation_id: str) -> Optional[Invitation]:
        return self._by_id.get(invitation_id)

    def invite_from_domain(self, organization_id: str, request: InvitationRequest) -> Invitation:
        """What Clerk does itself when somebody signs up whose address is of an organization's domain."""
        with self.lock:
            invitation = self.create(organization_id, [request])[0]
            invitation.from_domain = True
            return invitation

    def of_address(self, organization_id: str, email_address: str) -> List[Invitation]:
        return list(self._by_address.get((organization_id, email_address.lower()), ()))

    def listed(self) -> List[Invitation]:
        """Those that lists have: not those that come from a domain (documented)."""
        return [each for each in self.invitations if not each.from_domain]

    def filtered(self, organization_id: str, email_address: str) -> List[Invitation]:
        """Those that the list's filter on an address finds."""
        address = self.normalize(email_address) if self._filter_normalizes else email_address
        return [each for each in self.of_address(organization_id, address) if not each.from_domain]

    def listed_of_organization(self, organization_id: str) -> List[Invitation]:
        return [each for each in self.of_organization(organization_id) if not each.from_domain]

    def of_organization(self, organization_id: str) -> List[Invitation]:
        return [each for each in self.invitations if each.organization_id == organization_id]

    def delete_organization(self, organization_id: str):
        """Its invitations go with it (inferred), and its id does not come back."""
        with self.lock:
            self._deleted_organizations.add(organization_id)
            self._memory.note({"deleted": organization_id})
            gone = self.of_organization(organization_id)
            self.invitations = [each for each in self.invitations if each.organization_id != organization_id]
            for invitation in gone:
                invitation.deleted = True
                del self._by_id[invitation.id]
                self._by_address.pop((organization_id, invitation.request.email_address.lower()), None)

    def has_deleted(self, organization_id: str) -> bool:
        return organization_id in self._deleted_organizations

    def add_member(self, organization_id: str, email_address: str):
        with self.lock:
            self._members.add((organization_id, email_address.lower()))
            self._memory.note({"member": [organization_id, email_address]})

    def members(self) -> List[Tuple[str, str]]:
        """Those that were added, or have accepted."""
        with self.lock:
            return sorted(self._members)

    def deleted_organizations(self) -> List[str]:
        with self.lock:
            return sorted(self._deleted_organizations)

    def is_member(self, organization_id: str, email_address: str) -> bool:
        """Addresses whose local part begins with "member" are members everywhere; tests need no preparation then."""
        address = email_address.lower()
        return address.startswith("member") or (organization_id, address) in self._members

    def accept(self, invitation: Invitation):
        with self.lock:
            invitation.settle("accepted", self.clock.milliseconds())
            self._note_status(invitation)
            self.add_member(invitation.organization_id, invitation.request.email_address)

    def revoke(self, invitation: Invitation):
        with self.lock:
            if not invitation.is_pending(self.clock.milliseconds()):
                raise ClerkError("organization_invitation_not_pending")
            invitation.settle("revoked", self.clock.milliseconds())
            self._note_status(invitation)

    def expire(self, invitation: Invitation):
        with self.lock:
            invitation.expires_at = self.clock.milliseconds()
            self._note_status(invitation)

    def set_clock(self, offset_seconds: float):
        with self.lock:
            self._set_clock(offset_seconds, int(time.time() * 1000))
            self._memory.note({"clock": str(offset_seconds), "really_at": self.clock_settings[-1][0]})

    def _set_clock(self, offset_seconds: float, really_at: int):
        self.clock.offset = offset_seconds
        self.clock_settings.append((really_at, int(offset_seconds * 1000)))

    def _meanwhile(self, invitation: Invitation):
        """Somebody accepts or revokes it, if its address says so: name@accepts-50.example.com after 50 ms."""
        match = _MEANWHILE.fullmatch(invitation.request.email_address)
        if match:
            act = self.accept if match.group(1) == "accepts" else self.revoke
            timer = threading.Timer(int(match.group(2)) / 1000, self._act_if_pending, (act, invitation))
            timer.daemon = True
            timer.start()

    def _act_if_pending(self, act: Callable[[Invitation], None], invitation: Invitation):
        with self.lock:
            if invitation.is_pending(self.clock.milliseconds()) and not invitation.deleted:
                act(invitation)

    def _note_status(self, invitation: Invitation):
        self._memory.note(
            {
                "id": invitation.id,
                "settled_status": invitation.settled_status,
                "updated_at": invitation.updated_at,
                "expires_at": invitation.expires_at,
            }
        )

    def _recall(self):
        """Do again what an earlier process has done. Members come before what their acceptance notes."""
        for event in self._memory.recalled():
            if "created" in event:
                for fields in event["created"]:
                    fields["request"] = InvitationRequest(**fields["request"])
                    self._enter(Invitation(**{**fields, "sequence": next(self._sequence)}))
            elif "member" in event:
                self.add_member(*event["member"])
            elif "deleted" in event:
                self.delete_organization(event["deleted"])
            elif "clock" in event:
                self._set_clock(float(event["clock"]), event["really_at"])
            else:
                invitation = self._by_id.get(event.pop("id"))
                for name, value in event.items():
                    setattr(invitation, name, value)
        self._memory.begin()
        for invitation in self.invitations:
            self._meanwhile(invitation)

    def _refuse_members(self, organization_id: str, requests):
        members = [each.email_address for each in requests if self.is_member(organization_id, each.email_address)]
        if members:
            raise ClerkError("already_a_member_in_organization", addresses=members)

    def _refuse_pending(self, organization_id: str, requests):
        """Clerk names the addresses in meta for a batch only (its own page relies on that)."""
        pending = [each.email_address for each in requests if self._pending(organization_id, each.email_address)]
        if pending:
            named = pending if len(requests) > 1 else []
            raise ClerkError("organization_invitation_not_unique", addresses=named)

    def _refuse_over_cap(self, organization_id: str, wanted: int):
        """Members plus pending invitations may not exceed the cap (documented)."""
        if self.membership_cap is None:
            return
        now = self.clock.milliseconds()
        members = sum(1 for organization, _ in self._members if organization == organization_id)
        pending = sum(1 for each in self.of_organization(organization_id) if each.is_pending(now))
        if members + pending + wanted > self.membership_cap:
            raise ClerkError("organization_membership_quota_exceeded", limit=self.membership_cap)

    def _pending(self, organization_id: str, email_address: str) -> bool:
        now = self.clock.milliseconds()
        return any(each.is_pending(now) for each in self.of_address(organization_id, email_address))

    def _add(self, organization_id: str, request: InvitationRequest, now: int, origin: str) -> Invitation:
        invitation = Invitation(
            sequence=next(self._sequence),
            id=new_invitation_id(),
            organization_id=organization_id,
            request=request,
            url=TICKET_ADDRESS + new_ticket(),
            created_at=now,
            updated_at=now,
            expires_at=now + request.expires_in_days * MILLISECONDS_A_DAY,
            origin=origin,
            created_really_at=int(time.time() * 1000),
        )
        self._enter(invitation)
        return invitation

    def _enter(self, invitation: Invitation):
        key = (invitation.organization_id, invitation.request.email_address.lower())
        self.invitations.append(invitation)
        self.history.append(invitation)
        self._by_id[invitation.id] = invitation
        self._by_address.setdefault(key, []).append(invitation)


def new_invitation_id() -> str:
    return "orginv_" + "".join(secrets.choice(_ALPHANUMERIC) for _ in range(27))


def new_ticket() -> str:
    """Something random that looks like the signed token in Clerk's addresses."""
    header = json.dumps({"alg": "RS256", "typ": "JWT"}).encode()
    parts = [header, secrets.token_bytes(60), secrets.token_bytes(64)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def role_name(role: str) -> str:
    """The name Clerk gives its two default roles, and a likely one for others: org:billing_lead, Billing Lead."""
    return role.split(":", 1)[1].replace("_", " ").title()


def public_inviter_data(user_id: Optional[str]) -> Optional[dict]:
    if user_id is None:
        return None
    return {
        "user_id": user_id,
        "identifier": f"{user_id.lower()}@example.com",
        "first_name": "Ines",
        "last_name": "Inviter",
        "image_url": "https://img.example.com/" + user_id,
        "has_image": False,
    }


def public_organization_data(organization_id: str) -> dict:
    """Shown in instance-wide lists only (documented)."""
    return {
        "id": organization_id,
        "name": "Organization " + organization_id.split("_", 1)[1],
        "slug": organization_id.lower().replace("_", "-"),
        "image_url": "https://img.example.com/" + organization_id,
        "has_image": False,
    }
