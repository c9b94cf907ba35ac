"""The fake Clerk, and what others do there meanwhile."""

from __future__ import annotations

import json
import os
import random
import ssl
import subprocess
import sys
import threading
import urllib.request
from typing import Dict, Iterator, List, NamedTuple

from .cluster import Place
from .network import own_address

# Refusals of an invitation because the person has one already, or is a member.
ALREADY_THERE = {
    "organization_invitation_not_unique",
    "duplicate_record",
    "already_a_member_in_organization",
}


class Creation(NamedTuple):
    """A request to create an invitation, for one of its addresses."""

    time: float
    email: str
    code: str
    invitation: str  # its id, or '' if none was created


class FakeClerk:
    """Over TLS, as nodes are no part of this machine.  Ends with this process."""

    def __init__(self, place: Place, test_folder: str, key: str):
        self._journal = os.path.join(place.folder, "journal")
        certificate, private_key = self._make_certificate(place)
        command = [sys.executable, os.path.join(test_folder, "fake_clerk.py"), "--host", own_address("public")]
        command += ["--tls", certificate, private_key, "--journal", self._journal, "--secret-key", key]
        command += ["--single-limit", "1000000", "--bulk-limit", "1000000", "--exit-with-stdin"]
        self._process = subprocess.Popen(
            place.user.command(*command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True
        )
        port = int(self._process.stdout.readline())
        self.url = f"https://{own_address('public')}:{port}"
        self.certificate = certificate
        context = ssl.create_default_context(cafile=certificate)
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def stop(self):
        self._process.stdin.close()
        self._process.wait()

    def invitations(self) -> List[dict]:
        """All that were ever created."""
        with self._opener.open(self.url + "/_fake/invitations", timeout=30) as answer:
            return json.loads(answer.read())["data"]

    def control(self, operation: str, arguments: dict):
        request = urllib.request.Request(
            self.url + "/_fake/" + operation,
            data=json.dumps(arguments).encode(),
            headers={"Content-Type": "application/json"},
        )
        with self._opener.open(request, timeout=30):
            pass

    def journal_size(self) -> int:
        return os.stat(self._journal).st_size

    def creations(self) -> Iterator[Creation]:
        """From the journal, in its order."""
        with open(self._journal, encoding="utf-8") as journal:
            for entry in map(json.loads, journal):
                body = entry["body"]
                if entry["method"] != "POST" or entry["path"].endswith("/revoke"):
                    continue
                created = {each["email_address"]: each["id"] for each in entry["created"]}
                for invitation in body if isinstance(body, list) else [body]:
                    email = invitation["email_address"]
                    yield Creation(entry["time"] / 1000, email, entry["code"] or "", created.get(email, ""))

    @staticmethod
    def _make_certificate(place: Place):
        certificate, key = (os.path.join(place.folder, name) for name in ("tls.crt", "tls.key"))
        subprocess.run(
            place.user.command(
                *"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=clerk".split(),
                *("-addext", "subjectAltName=IP:" + own_address("public")),
                *("-keyout", key, "-out", certificate),
            ),
            check=True,
            stderr=subprocess.DEVNULL,
        )
        return certificate, key


class Others(threading.Thread):
    """Some people accept soon, and some invitations are revoked by an administrator."""

    def __init__(self, clerk: FakeClerk, accepted: int, revoked: int, seed: int):
        super().__init__(daemon=True)
        self._clerk = clerk
        self._shares = {"accept": accepted, "revoke_as_admin": revoked}
        self._chance = random.Random(seed)
        self._seen: Dict[str, bool] = {}
        self._stop_event = threading.Event()

    def run(self):
        while not self._stop_event.wait(1):
            for invitation in self._clerk.invitations():
                if invitation["id"] not in self._seen:
                    self._seen[invitation["id"]] = True
                    self._act_on(invitation["id"])

    def stop(self):
        self._stop_event.set()
        self.join(30)

    def _act_on(self, invitation: str):
        roll = self._chance.randrange(100)
        for operation, share in self._shares.items():
            if roll < share:
                self._clerk.control(operation, {"id": invitation})
                return
            roll -= share
