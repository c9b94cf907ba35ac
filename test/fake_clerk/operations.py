"""The six operations, under Clerk's own names, and the paths they live at."""

from __future__ import annotations

import re
from typing import Callable, List, NamedTuple, Tuple
from urllib.parse import unquote

from . import validation
from .contract import read_statuses
from .errors import ClerkError
from .http_types import Reply, Request
from .ledger import Invitation, Ledger, public_organization_data

DEFAULT_PAGE = 10  # documented

_ORGANIZATION = re.compile(r"org_[A-Za-z0-9]+")
_USER = re.compile(r"user_[A-Za-z0-9]+")


class Call:
    """One request that found its operation: what the operation, and a misbehaviour around it, may use."""

    def __init__(self, operation: "Operation", parameters: List[str], request: Request, instance):
        self.operation = operation
        self.parameters = parameters
        self.request = request
        self.ledger: Ledger = instance.ledger
        self.settings = instance.settings
        self.created: List[Invitation] = []
        self.violations: List[str] = []
        self.reverse_ties = False
        self._contract = instance.contract
        self._reply = None

    def perform(self) -> Reply:
        """Do what was asked, once, however often this is called; a refusal is a reply too."""
        if self._reply is None:
            try:
                self._reply = Reply(200, self.operation.function(self))
            except ClerkError as error:
                self._reply = refusal(error)
            violation = self._contract.check_reply(self.operation.name, self._reply)
            if violation:
                self.violations.append(violation.text)
        return self._reply

    def perform_first(self, count: int):
        """Create the first invitations of a bulk request, and say nothing. Raises if one of them is refused."""
        if self.operation.name == "CreateOrganizationInvitationBulk":
            _create(self, validation.read_bulk(self.request.json(), self.ledger.normalize)[:count])

    def organization(self) -> str:
        """The organization of the path. Any exists, unless some were named or its id says that it is missing."""
        organization = self.parameters[0]
        if self.settings.organizations:
            exists = organization in self.settings.organizations
        else:
            exists = _ORGANIZATION.fullmatch(organization) and not organization.startswith("org_missing")
        if not exists or self.ledger.has_deleted(organization):
            raise ClerkError("organization_not_found_or_unauthorized")
        return organization

    def invitation(self) -> Invitation:
        """The invitation of the path, which must belong to the path's organization."""
        organization = self.organization()
        invitation = self.ledger.find(self.parameters[1])
        if invitation is None or invitation.organization_id != organization:
            raise ClerkError("resource_not_found", what="Organization invitation")
        return invitation


def create_organization_invitation(call: Call) -> dict:
    requests = [validation.read_invitation(call.request.json(), call.ledger.normalize)]
    _create(call, requests)
    return _show(call, call.created[0])


def create_organization_invitation_bulk(call: Call) -> dict:
    """The order of the answer is not documented: last first here, so that no client relies on it."""
    _create(call, validation.read_bulk(call.request.json(), call.ledger.normalize))
    documents = [_show(call, invitation) for invitation in reversed(call.created)]
    return {"data": documents, "total_count": len(documents)}


def list_organization_invitations(call: Call) -> dict:
    organization = call.organization()
    with call.ledger.lock:
        address = call.request.query.get("email_address", [""])[-1]
        if address:
            found = call.ledger.filtered(organization, address)
        else:
            found = call.ledger.listed_of_organization(organization)
        page, total = _page(call, found)
        return {"data": [_show(call, invitation) for invitation in page], "total_count": total}


def list_instance_organization_invitations(call: Call) -> dict:
    """`query` filters by address (documented); of parts, or of ids, nothing is documented."""
    wanted = call.request.query.get("query", [""])[-1].lower()
    with call.ledger.lock:
        found = [each for each in call.ledger.listed() if wanted in ("", each.request.email_address.lower())]
        page, total = _page(call, found)
        documents = [_show(call, invitation) for invitation in page]
    for document in documents:
        document["public_organization_data"] = public_organization_data(document["organization_id"])
    return {"data": documents, "total_count": total}


def get_organization_invitation(call: Call) -> dict:
    return _show(call, call.invitation())


def revoke_organization_invitation(call: Call) -> dict:
    body = call.request.json() if call.request.body else {}
    invitation = call.invitation()
    _check_user(body.get("requesting_user_id"))
    call.ledger.revoke(invitation)
    return _show(call, invitation)


class Operation(NamedTuple):
    """One of the API's operations: Clerk's name for it, its method and path, and what it does."""

    name: str
    method: str
    path: "re.Pattern"
    function: Callable[[Call], dict]


_OF_ORGANIZATION = "/v1/organizations/([^/]+)/invitations"

# The first match wins: "bulk" must come before an invitation's id.
OPERATIONS = [
    Operation(name, method, re.compile(path), function)
    for name, method, path, function in (
        ("CreateOrganizationInvitation", "POST", _OF_ORGANIZATION, create_organization_invitation),
        ("CreateOrganizationInvitationBulk", "POST", _OF_ORGANIZATION + "/bulk", create_organization_invitation_bulk),
        ("ListOrganizationInvitations", "GET", _OF_ORGANIZATION, list_organization_invitations),
        ("GetOrganizationInvitation", "GET", _OF_ORGANIZATION + "/([^/]+)", get_organization_invitation),
        (
            "RevokeOrganizationInvitation",
            "POST",
            _OF_ORGANIZATION + "/([^/]+)/revoke",
            revoke_organization_invitation,
        ),
        (
            "ListInstanceOrganizationInvitations",
            "GET",
            "/v1/organization_invitations",
            list_instance_organization_invitations,
        ),
    )
]
OPERATION_NAMES = [operation.name for operation in OPERATIONS]
CREATING = ("CreateOrganizationInvitation", "CreateOrganizationInvitationBulk")


def find_operation(method: str, path: str) -> Tuple[Operation, List[str]]:
    """The operation at a path, with the path's parameters decoded."""
    matches = [(each, each.path.fullmatch(path)) for each in OPERATIONS]
    matches = [(each, match) for each, match in matches if match]
    if not matches:
        raise ClerkError("resource_not_found")
    for operation, match in matches:
        if operation.method == method:
            return operation, [unquote(part) for part in match.groups()]
    allowed = ", ".join(operation.method for operation, _ in matches)
    raise ClerkError("method_not_allowed", headers=[("Allow", allowed)])


def refusal(error: ClerkError) -> Reply:
    return Reply(error.status, {"errors": [error.error]}, headers=error.headers, code=error.code)


def _create(call: Call, requests):
    organization = call.organization()
    for request in requests:
        _check_role(request.role)
        _check_user(request.inviter_user_id)
    call.created = call.ledger.create(organization, requests)


def _check_role(role: str):
    """Every well-formed role exists, except those that begin with org:missing."""
    if role.startswith("org:missing"):
        raise ClerkError("resource_not_found", what="Organization role")


def _check_user(user_id):
    """Every well-formed user is a member, except user_stranger...; user_missing... does not exist at all."""
    if user_id is None:
        return
    if not _USER.fullmatch(user_id) or user_id.startswith("user_missing"):
        raise ClerkError("resource_not_found", what="User")
    if user_id.startswith("user_stranger"):
        raise ClerkError("not_a_member_in_organization")


def _show(call: Call, invitation: Invitation) -> dict:
    return invitation.document(call.ledger.clock.milliseconds())


def _page(call: Call, invitations: List[Invitation]) -> Tuple[List[Invitation], int]:
    """The page asked for, newest first unless asked otherwise (documented), and how many there are in all."""
    query = call.request.query
    limit = int(query.get("limit", [DEFAULT_PAGE])[0])
    offset = int(query.get("offset", [0])[0])
    statuses = read_statuses(query.get("status", []), call.settings.status_reading)
    order = query.get("order_by", ["-created_at"])[0]
    if call.settings.ignored_order:
        order = "-" + call.settings.ignored_order
    name, descending = order.lstrip("+-"), order.startswith("-")
    now = call.ledger.clock.milliseconds()
    found = [each for each in invitations if not statuses or each.status(now) in statuses]
    found.sort(key=lambda each: each.sequence, reverse=call.reverse_ties != descending)
    found.sort(key=SORT_KEYS[name], reverse=descending)
    return found[offset : offset + limit], len(found)


SORT_KEYS = {
    "created_at": lambda invitation: invitation.created_at,
    "email_address": lambda invitation: invitation.request.email_address.lower(),
}
