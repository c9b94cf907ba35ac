"""What one invitation in a request body, and the parameters of a list, must look like."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Callable, List, Optional

from . import json_text
from .errors import ClerkError

LARGEST_METADATA = 8 * 1024  # documented for users and organizations, inferred for invitations
LARGEST_BULK = 10  # documented
LONGEST_EXPIRY_DAYS = 365  # documented
DEFAULT_EXPIRY_DAYS = 30  # documented
STATUSES = ("pending", "accepted", "revoked", "expired")  # documented
SORT_FIELDS = ("created_at", "email_address")  # documented

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


def _text(name: str, value) -> str:
    if not isinstance(value, str):
        raise ClerkError("form_param_type_invalid", param=name, wanted="string")
    return value


def _email_address(name: str, value) -> str:
    if not _ADDRESS.fullmatch(_text(name, value)):
        raise ClerkError("form_param_format_invalid", param=name, wanted="email address")
    return value


def _role(name: str, value) -> str:
    if not _ROLE.fullmatch(_text(name, value)):
        raise ClerkError("form_param_format_invalid", param=name, wanted="role key")
    return value


def _redirect_url(name: str, value) -> str:
    if not _ADDRESS_OF_PAGE.fullmatch(_text(name, value)):
        raise ClerkError("form_param_format_invalid", param=name, wanted="URL")
    return value


def _metadata(name: str, value) -> dict:
    if not isinstance(value, dict):
        raise ClerkError("form_param_value_invalid", param=name, value=json_text.encode_text(value))
    if len(json_text.encode(value)) > LARGEST_METADATA:
        raise ClerkError("form_param_exceeds_allowed_size", param=name, limit=LARGEST_METADATA)
    return value


def _expires_in_days(name: str, value) -> int:
    if not isinstance(value, json_text.Number) or not value.is_integer():
        raise ClerkError("form_param_type_invalid", param=name, wanted="integer")
    if len(value.text) > 6 or not 1 <= int(value.text) <= LONGEST_EXPIRY_DAYS:
        raise ClerkError("form_param_value_invalid", param=name, value=value.text)
    return int(value.text)


def _boolean(name: str, value) -> bool:
    if not isinstance(value, bool):
        raise ClerkError("form_param_type_invalid", param=name, wanted="boolean")
    return value


_REQUIRED = ("email_address", "role")
_CHECKS = {
    "email_address": _email_address,
    "role": _role,
    "inviter_user_id": _text,
    "public_metadata": _metadata,
    "private_metadata": _metadata,
    "redirect_url": _redirect_url,
    "expires_in_days": _expires_in_days,
    "notify": _boolean,
}


def read_invitation(value, normalize: Callable[[str], str] = str) -> InvitationRequest:
    """One invitation of a body. Null is the same as absent (documented); an unknown field is refused."""
    if not isinstance(value, dict):
        raise ClerkError("request_body_invalid")
    for name in _REQUIRED:
        if value.get(name) in (None, ""):
            raise ClerkError("form_param_missing", param=name)
    for name in value:
        if name not in _CHECKS:
            raise ClerkError("form_param_unknown", param=name)
    given = {name: item for name, item in value.items() if item is not None}
    given["email_address"] = normalize(_text("email_address", given["email_address"]))
    return InvitationRequest(**{name: _CHECKS[name](name, item) for name, item in given.items()})


def read_bulk(value, normalize: Callable[[str], str] = str) -> List[InvitationRequest]:
    """The invitations of a bulk body: a bare array of 1 to 10 (documented), no address twice.

    What Clerk does with an address that comes twice is not known. It is refused here, so that a client which sends
    one is found out.
    """
    if not isinstance(value, list) or not value:
        raise ClerkError("request_body_invalid")
    if len(value) > LARGEST_BULK:
        raise ClerkError("bulk_size_exceeded", limit=LARGEST_BULK)
    requests = [read_invitation(item, normalize) for item in value]
    addresses = [request.email_address.lower() for request in requests]
    repeated = [each.email_address for each in requests if addresses.count(each.email_address.lower()) > 1]
    if repeated:
        raise ClerkError("duplicate_record", addresses=repeated)
    return requests


def read_requesting_user(value) -> Optional[str]:
    """The one optional field of a revoke request's body."""
    if not isinstance(value, dict):
        raise ClerkError("request_body_invalid")
    for name in value:
        if name != "requesting_user_id":
            raise ClerkError("form_param_unknown", param=name)
    user = value.get("requesting_user_id")
    return None if user is None else _text("requesting_user_id", user)


def read_number(query: dict, name: str, default: int, lowest: int, highest: Optional[int]) -> int:
    """A whole number among the query parameters, within bounds."""
    text = query.get(name, [str(default)])[-1]
    acceptable = re.fullmatch(r"[0-9]{1,9}", text) is not None and int(text) >= lowest
    if not acceptable or (highest is not None and int(text) > highest):
        raise ClerkError("form_param_value_invalid", param=name, value=text)
    return int(text)


def read_statuses(query: dict) -> List[str]:
    """The repeatable filter on status; none means all."""
    for status in query.get("status", []):
        if status not in STATUSES:
            raise ClerkError("form_param_value_invalid", param="status", value=status)
    return query.get("status", [])


def read_order(query: dict):
    """The field to sort by and whether to begin with the largest. A + that was not encoded is a blank: refused."""
    order = query.get("order_by", ["-created_at"])[-1]
    name = order[1:] if order[:1] in ("+", "-") else order
    if name not in SORT_FIELDS:
        raise ClerkError("form_param_value_invalid", param="order_by", value=order)
    return name, order.startswith("-")
