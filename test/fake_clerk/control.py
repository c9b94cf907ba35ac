"""The test's own hand, under /_fake/: what an administrator, an invited person or an outage does at Clerk.

No key is asked for; the server listens on loopback only. These requests are not in the journal, which is about the
client under test.
"""

from __future__ import annotations

from . import json_text
from .api import Instance
from .behaviours import find_misbehaviour
from .errors import ClerkError
from .http_types import Reply, Request
from .ledger import Invitation
from .operations import OPERATION_NAMES
from .validation import InvitationRequest

PREFIX = "/_fake/"


class ControlError(Exception):
    """The test asked for something that cannot be done."""


class Control:
    """The control endpoints, dispatched by method and name."""

    def __init__(self, instance: Instance):
        self._instance = instance
        self._endpoints = {
            ("POST", "accept"): self._accept,
            ("POST", "revoke_as_admin"): self._revoke,
            ("POST", "expire"): self._expire,
            ("POST", "add_member"): self._add_member,
            ("POST", "invite_from_domain"): self._invite_from_domain,
            ("POST", "delete_organization"): self._delete_organization,
            ("POST", "invite"): self._invite,
            ("POST", "clock"): self._clock,
            ("POST", "down"): self._down,
            ("POST", "misbehave"): self._misbehave,
            ("POST", "reset"): self._reset,
            ("GET", "invitations"): self._invitations,
            ("GET", "ledger"): self._ledger,
        }

    def answer(self, request: Request) -> Reply:
        endpoint = self._endpoints.get((request.method, request.path[len(PREFIX) :]))
        if endpoint is None:
            return _reply(404, {"error": "there is no such control endpoint"})
        try:
            return _reply(200, endpoint(_arguments(request)))
        except KeyError as error:
            return _reply(400, {"error": f"{error.args[0]} is missing"})
        except ControlError as error:
            return _reply(400, {"error": str(error)})
        except ClerkError as error:
            return _reply(400, {"error": error.code})

    def _accept(self, arguments: dict) -> dict:
        """The invited person accepts, and is a member from then on."""
        invitation = self._invitation(arguments)
        self._instance.ledger.accept(invitation)
        return self._shown(invitation)

    def _revoke(self, arguments: dict) -> dict:
        invitation = self._invitation(arguments)
        self._instance.ledger.revoke(invitation)
        return self._shown(invitation)

    def _expire(self, arguments: dict) -> dict:
        invitation = self._invitation(arguments)
        self._instance.ledger.expire(invitation)
        return self._shown(invitation)

    def _add_member(self, arguments: dict) -> dict:
        self._instance.ledger.add_member(arguments["organization_id"], arguments["email_address"])
        return {"ok": True}

    def _invite_from_domain(self, arguments: dict) -> dict:
        """An invitation that Clerk creates for somebody with an address of an organization's domain."""
        request = InvitationRequest(arguments["email_address"], "org:member")
        return self._shown(self._instance.ledger.invite_from_domain(arguments["organization_id"], request))

    def _delete_organization(self, arguments: dict) -> dict:
        self._instance.ledger.delete_organization(arguments["organization_id"])
        return {"ok": True}

    def _invite(self, arguments: dict) -> dict:
        """Somebody else invites."""
        request = InvitationRequest(arguments["email_address"], arguments.get("role", "org:member"))
        return self._shown(self._instance.ledger.create(arguments["organization_id"], [request], origin="control")[0])

    def _clock(self, arguments: dict) -> dict:
        """Set this Clerk's clock, to so many seconds ahead."""
        self._instance.ledger.set_clock(float(arguments["offset"].text))
        return {"ok": True}

    def _down(self, arguments: dict) -> dict:
        """While down, every request is answered 503."""
        self._instance.down = bool(arguments["down"])
        return {"down": self._instance.down}

    def _misbehave(self, arguments: dict) -> dict:
        """Let the next `times` (1) requests of an operation misbehave, by Clerk's name for the operation; 0: none."""
        operation, behaviour = arguments["operation"], arguments["behaviour"]
        if operation not in OPERATION_NAMES:
            raise ControlError(f"the operations are {', '.join(OPERATION_NAMES)}")
        find_misbehaviour(behaviour)
        times = arguments.get("times")
        self._instance.chooser.order(operation, behaviour, int(times.text) if times else 1)
        return {"ok": True}

    def _reset(self, arguments: dict) -> dict:
        """Forget everything but the settings and the journal's numbers."""
        self._instance.reset()
        return {"ok": True}

    def _invitations(self, arguments: dict) -> dict:
        """Everything that was ever created, in order."""
        with self._instance.ledger.lock:
            documents = [self._shown(invitation) for invitation in self._instance.ledger.invitations]
        return {"data": documents, "total_count": len(documents)}

    def _ledger(self, arguments: dict) -> dict:
        """All that has ever happened: who invited, which organizations are gone, who is a member."""
        ledger = self._instance.ledger
        with ledger.lock:
            now = ledger.clock.milliseconds()
            return {
                "invitations": [
                    {
                        **each.reference(),
                        "status": each.status(now),
                        "created_at": each.created_at,
                        "created_really_at": each.created_really_at,
                        "origin": each.origin,
                        "deleted": each.deleted,
                    }
                    for each in ledger.history
                ],
                "members": ledger.members(),
                "clock_settings": ledger.clock_settings,
                "deleted_organizations": ledger.deleted_organizations(),
            }

    def _invitation(self, arguments: dict) -> Invitation:
        invitation = self._instance.ledger.find(arguments["id"])
        if invitation is None:
            raise ControlError("there is no such invitation")
        return invitation

    def _shown(self, invitation: Invitation) -> dict:
        """An invitation without its url, and with what Clerk does not show."""
        document = invitation.document(self._instance.clock.milliseconds())
        del document["url"]
        document["redirect_url"] = invitation.request.redirect_url
        document["notify"] = invitation.request.notify
        return document


def _reply(status: int, document: dict) -> Reply:
    return Reply(status, document, tracing=())


def _arguments(request: Request) -> dict:
    try:
        arguments = json_text.parse(request.body or b"{}")
    except ValueError:
        raise ControlError("the body is not JSON") from None
    if not isinstance(arguments, dict):
        raise ControlError("the body is not a JSON object")
    return arguments
