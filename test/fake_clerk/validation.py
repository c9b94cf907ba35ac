"""What the schemas of the contract leave open about the invitations in a request body."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Callable, List, Optional

from . import json_text
from .errors import ClerkError

LARGEST_METADATA = 8 * 1024  # documented for users and organizations, inferred for invitations
DEFAULT_EXPIRY_DAYS = 30  # documented

# Only what is certain: something on both sides of the @, no white space, no control characters.
_ADDRESS = re.compile(r"[^\s\x00-\x1f@]+@[^\s\x00-\x1f@]+")
_ROLE = re.compile(r"org:[a-z0-9_]+")  # documented
_ADDRESS_OF_PAGE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


@dataclass
class InvitationRequest:
    """One invitation asked for, checked."""

    email_address: str
    role: str
    inviter_user_id: Optional[str] = None
    public_metadata: dict = field(default_factory=dict)
    private_metadata: dict = field(default_factory=dict)
    redirect_url: Optional[str] = None
    expires_in_days: int = DEFAULT_EXPIRY_DAYS
    notify: bool = True


def _email_address(name: str, value: str) -> str:
    if not _ADDRESS.fullmatch(value):
        raise ClerkError("form_param_format_invalid", param=name, wanted="email address")
    return value


def _role(name: str, value: str) -> str:
    if not _ROLE.fullmatch(value):
        raise ClerkError("form_param_format_invalid", param=name, wanted="role key")
    return value


def _redirect_url(name: str, value: str) -> str:
    if not _ADDRESS_OF_PAGE.fullmatch(value):
        raise ClerkError("form_param_format_invalid", param=name, wanted="URL")
    return value


def _metadata(name: str, value: dict) -> dict:
    if len(json_text.encode(value)) > LARGEST_METADATA:
        raise ClerkError("form_param_exceeds_allowed_size", param=name, limit=LARGEST_METADATA)
    return value


_CHECKS = {
    "email_address": _email_address,
    "role": _role,
    "public_metadata": _metadata,
    "private_metadata": _metadata,
    "redirect_url": _redirect_url,
    "expires_in_days": lambda name, value: int(value.text),
}


def read_invitation(value: dict, normalize: Callable[[str], str] = str) -> InvitationRequest:
    """One invitation of a body. Null is the same as absent (documented)."""
    given = {name: item for name, item in value.items() if item is not None}
    given["email_address"] = normalize(given["email_address"])
    return InvitationRequest(
        **{name: _CHECKS[name](name, item) if name in _CHECKS else item for name, item in given.items()}
    )


def read_bulk(value: List[dict], normalize: Callable[[str], str] = str) -> List[InvitationRequest]:
    """The invitations of a bulk body, no address twice.

    What Clerk does with an address that comes twice is not known. It is refused here, so that a client which sends
    one is found out.
    """
    requests = [read_invitation(item, normalize) for item in value]
    addresses = [request.email_address.lower() for request in requests]
    repeated = [each.email_address for each in requests if addresses.count(each.email_address.lower()) > 1]
    if repeated:
        raise ClerkError("duplicate_record", addresses=repeated)
    return requests
