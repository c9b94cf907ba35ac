#!/usr/bin/env python3
"""Tests of the fake Clerk itself. Run: python3 test/fake_clerk_test.py"""

from __future__ import annotations

import functools
import http.client
import itertools
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import unittest
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urlencode

sys.dont_write_bytecode = True

from fake_clerk.behaviours import TABLE  # noqa: E402  (must follow the setting above)
from fake_clerk.contract import Contract  # noqa: E402
from fake_clerk.errors import CATALOGUE, error_object  # noqa: E402
from fake_clerk.http_types import Reply  # noqa: E402
from fake_clerk.ledger import Clock, Ledger  # noqa: E402
from fake_clerk.validation import InvitationRequest  # noqa: E402

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_clerk.py")
KEY = "sk_test_fakeclerk000000000000000000000000000"
INVITATIONS = "/v1/organizations/org_1/invitations"
BULK = INVITATIONS + "/bulk"
PATIENCE = 10  # seconds until a test that waits gives up
IMPATIENCE = 0.3  # seconds a client waits for an answer that is not to come

_numbers = itertools.count(1)


def setUpModule():
    global directory, certificate, private_key
    directory = tempfile.TemporaryDirectory()
    certificate = os.path.join(directory.name, "cert.pem")
    private_key = os.path.join(directory.name, "key.pem")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    command += f" -addext subjectAltName=IP:127.0.0.1 -out {certificate} -keyout {private_key}"
    subprocess.run(command.split(), check=True, stderr=subprocess.DEVNULL)


def tearDownModule():
    directory.cleanup()


def invitation(address: str, **fields) -> dict:
    return {"email_address": address, "role": "org:member", **fields}


def unique(name: str = "person") -> str:
    return f"{name}--{next(_numbers)}@example.com"


class Answer(NamedTuple):
    """One answer, its body both as bytes and, if it is JSON, as a value."""

    status: int
    headers: http.client.HTTPMessage
    raw: bytes

    @property
    def json(self):
        return json.loads(self.raw)

    @property
    def error(self) -> dict:
        return self.json["errors"][0]

    @property
    def code(self) -> str:
        return self.error["code"]


class FakeClerk:
    """The server as a child process, and a client for it, which is not clerk_invite."""

    client_options = ["--any-client"]

    def __init__(self, *options: str, tls: bool = False):
        self.journal_path = os.path.join(directory.name, f"journal-{next(_numbers)}")
        self._stderr = tempfile.TemporaryFile()
        self._tls = ssl.create_default_context(cafile=certificate) if tls else None
        self.violations_path = self.journal_path + "-violations"
        command = [sys.executable, PROGRAM, "--exit-with-stdin", "--journal", self.journal_path]
        command += ["--violations", self.violations_path, *self.client_options, *options]
        if tls:
            command += ["--tls", certificate, private_key]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
        )
        self.port = int(self.process.stdout.readline())

    def stop(self) -> str:
        """End the server the way a killed test does; what it printed besides its port, which should be nothing."""
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        printed = self.process.stdout.read()
        self.process.stdout.close()
        self._stderr.seek(0)
        printed += self._stderr.read()
        self._stderr.close()
        return printed.decode()

    def connect(self, timeout: float = PATIENCE) -> http.client.HTTPConnection:
        if self._tls:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=self._tls)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def send(self, connection, method: str, path: str, body=None, **headers):
        """Send a request; a body that is not bytes goes as JSON. A header that is None is left out."""
        headers = {
            "Authorization": f"Bearer {KEY}",
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        given = {name: value for name, value in headers.items() if value is not None}
        connection.request(method, path, body, given)

    def ask(self, method: str, path: str, body=None, timeout: float = PATIENCE, **headers) -> Answer:
        """One request on a connection of its own."""
        connection = self.connect(timeout)
        try:
            self.send(connection, method, path, body, **headers)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def create(self, address: str, **fields) -> Answer:
        return self.ask("POST", INVITATIONS, invitation(address, **fields))

    def list(self, **query) -> Answer:
        return self.ask("GET", INVITATIONS + "?" + urlencode(query, doseq=True))

    def violations(self) -> list:
        with open(self.violations_path, encoding="utf-8") as file:
            return file.read().splitlines()

    def control(self, name: str, **arguments) -> Answer:
        return self.ask("POST", "/_fake/" + name, arguments, Authorization=None)

    def exists(self, address: str) -> bool:
        ledger = self.ask("GET", "/_fake/invitations", Authorization=None).json["data"]
        return address in [each["email_address"] for each in ledger]

    def ledger(self, address: str) -> list:
        ledger = self.ask("GET", "/_fake/ledger", Authorization=None).json["invitations"]
        return [each for each in ledger if each["email_address"] == address]

    def journal(self) -> list:
        with open(self.journal_path, encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]


class ServerTest(unittest.TestCase):
    """A test case with a server of its own, which must not have complained in the end."""

    options = ()
    tls = False

    @classmethod
    def setUpClass(cls):
        cls.clerk = FakeClerk(*cls.options, tls=cls.tls)

    @classmethod
    def tearDownClass(cls):
        printed = cls.clerk.stop()
        if printed:
            raise AssertionError("the server printed:\n" + printed)

    def assert_refused(self, answer: Answer, status: int, code: str):
        self.assertEqual((answer.status, answer.code), (status, code))
        self.assertTrue(answer.error["message"])
        self.assertTrue(answer.error["long_message"])
        self.assertEqual(answer.json["clerk_trace_id"], answer.headers["x-clerk-trace-id"])


class ValidationTest(ServerTest):
    def refuse_invitation(self, body, status: int, code: str, parameter: str = None):
        answer = self.clerk.ask("POST", INVITATIONS, body)
        self.assert_refused(answer, status, code)
        self.assertEqual(answer.error.get("meta", {}).get("param_name"), parameter)

    def test_answer_has_every_documented_field(self):
        address = unique("Somebody")
        answer = self.clerk.create(address, inviter_user_id="user_1", expires_in_days=2, redirect_url="https://a.b/c")
        document = answer.json
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["content-type"], "application/json")
        self.assertIsNotNone(parsedate_to_datetime(answer.headers["date"]))
        self.assertRegex(document["id"], r"^orginv_[A-Za-z0-9]{27}$")
        self.assertRegex(document["url"], r"^https://\S+/v1/tickets/accept\?ticket=\S+\.\S+\.\S+$")
        self.assertEqual(document["expires_at"] - document["created_at"], 2 * 24 * 60 * 60 * 1000)
        self.assertEqual(document["public_inviter_data"]["user_id"], "user_1")
        expected = {
            "object": "organization_invitation",
            "email_address": address,
            "role": "org:member",
            "role_name": "Member",
            "organization_id": "org_1",
            "inviter_id": "user_1",
            "status": "pending",
            "public_metadata": {},
            "private_metadata": {},
            "updated_at": document["created_at"],
        }
        self.assertEqual({name: document[name] for name in expected}, expected)
        self.assertNotIn("public_organization_data", document)

    def test_null_is_the_same_as_absent(self):
        nothing = dict.fromkeys(
            ["inviter_user_id", "public_metadata", "private_metadata", "redirect_url", "expires_in_days", "notify"]
        )
        self.assertEqual(self.clerk.create(unique(), **nothing).status, 200)

    def test_missing_fields(self):
        self.refuse_invitation({"role": "org:member"}, 422, "form_param_missing", "email_address")
        self.refuse_invitation({"email_address": unique()}, 422, "form_param_missing", "role")

    def test_unusable_fields(self):
        large = {"a": "x" * 8200}
        cases = [
            ("email_address", "nobody", "form_param_format_invalid"),
            ("email_address", 7, "form_param_type_invalid"),
            ("role", "member", "form_param_format_invalid"),
            ("role", "org:Member", "form_param_format_invalid"),
            ("inviter_user_id", 7, "form_param_type_invalid"),
            ("public_metadata", [1], "form_param_value_invalid"),
            ("private_metadata", "text", "form_param_value_invalid"),
            ("private_metadata", large, "form_param_exceeds_allowed_size"),
            ("redirect_url", "nowhere", "form_param_format_invalid"),
            ("expires_in_days", 0, "form_param_value_invalid"),
            ("expires_in_days", 366, "form_param_value_invalid"),
            ("expires_in_days", "7", "form_param_type_invalid"),
            ("expires_in_days", 7.5, "form_param_type_invalid"),
            ("notify", "yes", "form_param_type_invalid"),
            ("emial", "typo", "form_param_unknown"),
        ]
        for name, value, code in cases:
            with self.subTest(name=name, value=str(value)[:20]):
                self.refuse_invitation({**invitation(unique()), name: value}, 422, code, name)

    def test_bodies_that_are_no_invitation(self):
        for body in (b"", b"{", b"\xff", b"[]", b"7", b'{"email_address":NaN}'):
            with self.subTest(body=body):
                self.refuse_invitation(body, 400, "request_body_invalid")
        self.refuse_invitation(b" " * 1024 * 1024 + b"{}", 413, "request_body_too_large")

    def test_what_does_not_exist(self):
        elsewhere = "/v1/organizations/org_missing/invitations"
        answer = self.clerk.ask("POST", elsewhere, invitation(unique()))
        self.assert_refused(answer, 404, "organization_not_found_or_unauthorized")
        self.refuse_invitation(invitation(unique(), role="org:missing"), 404, "resource_not_found")
        self.refuse_invitation(invitation(unique(), inviter_user_id="user_missing"), 404, "resource_not_found")
        self.refuse_invitation(invitation(unique(), inviter_user_id="me"), 404, "resource_not_found")
        stranger = invitation(unique(), inviter_user_id="user_stranger1")
        self.refuse_invitation(stranger, 403, "not_a_member_in_organization")

    def test_content_type(self):
        for content_type in (None, "text/plain", "application/x-www-form-urlencoded"):
            answer = self.clerk.ask("POST", INVITATIONS, invitation(unique()), Content_Type=content_type)
            self.assert_refused(answer, 415, "unsupported_content_type")
        content_type = "application/json; charset=utf-8"
        self.assertEqual(
            self.clerk.ask("POST", INVITATIONS, invitation(unique()), Content_Type=content_type).status, 200
        )

    def test_key_is_checked_before_the_path(self):
        cases = [
            (None, "authentication_invalid"),
            ("Basic abc", "authorization_header_format_invalid"),
            ("Bearer sk_test_wrong", "clerk_key_invalid"),
        ]
        for header, code in cases:
            self.assert_refused(self.clerk.ask("GET", "/v1/nowhere", Authorization=header), 401, code)

    def test_path_method_and_version(self):
        self.assert_refused(self.clerk.ask("GET", "/v1/nowhere"), 404, "resource_not_found")
        self.assert_refused(self.clerk.ask("DELETE", INVITATIONS), 405, "method_not_allowed")
        answer = self.clerk.ask("GET", INVITATIONS, Clerk_API_Version="2020-01-01")
        self.assert_refused(answer, 400, "api_version_invalid")
        self.assertEqual(self.clerk.ask("GET", INVITATIONS, Clerk_API_Version="2026-05-12").status, 200)

    def test_bulk(self):
        addresses = [unique() for _ in range(10)]
        answer = self.clerk.ask("POST", BULK, [invitation(address) for address in addresses])
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.json["total_count"], 10)
        self.assertEqual({each["email_address"] for each in answer.json["data"]}, set(addresses))

    def test_bulk_of_the_wrong_size(self):
        self.assert_refused(self.clerk.ask("POST", BULK, []), 400, "request_body_invalid")
        self.assert_refused(self.clerk.ask("POST", BULK, {}), 400, "request_body_invalid")
        eleven = [invitation(unique()) for _ in range(11)]
        self.assert_refused(self.clerk.ask("POST", BULK, eleven), 400, "bulk_size_exceeded")

    def test_bulk_is_all_or_nothing(self):
        good, pending, member = unique(), unique(), unique("member")
        self.clerk.create(pending)
        self.assert_refused(
            self.clerk.ask("POST", BULK, [invitation(good), invitation("bad")]), 422, "form_param_format_invalid"
        )
        answer = self.clerk.ask("POST", BULK, [invitation(good), invitation(pending.upper())])
        self.assert_refused(answer, 400, "organization_invitation_not_unique")
        self.assertEqual(answer.error["meta"], {"email_addresses": [pending.upper()]})
        answer = self.clerk.ask("POST", BULK, [invitation(good), invitation(member)])
        self.assert_refused(answer, 400, "already_a_member_in_organization")
        answer = self.clerk.ask("POST", BULK, [invitation(good), invitation(good.title())])
        self.assert_refused(answer, 400, "duplicate_record")
        self.assertFalse(self.clerk.exists(good))


class MetadataTest(ServerTest):
    def test_numbers_keep_their_digits(self):
        numbers = "[1.10,1e400,-0,0.0000000000000000000001,123456789012345678901234567890,1E+2]"
        body = '{"email_address":"%s","role":"org:member","public_metadata":{"n":%s}}' % (unique(), numbers)
        answer = self.clerk.ask("POST", INVITATIONS, body.encode())
        self.assertIn(b'"public_metadata":{"n":' + numbers.encode() + b"}", answer.raw)
        shown = self.clerk.ask("GET", f"{INVITATIONS}/{answer.json['id']}")
        self.assertIn(numbers.encode(), shown.raw)

    def test_text_is_written_as_go_does(self):
        text = '<a href="x">&\u2028 \\ \0 \x1f \n é 日本 😀 العربية'
        answer = self.clerk.create(unique(), private_metadata={"日本": text})
        self.assertEqual(answer.json["private_metadata"], {"日本": text})
        self.assertIn("日本".encode(), answer.raw)
        for escaped in (b"\\u003ca", b"\\u003e", b"\\u0026", b"\\u2028", b"\\u0000", b"\\u001f", b"\\n"):
            self.assertIn(escaped, answer.raw)

    def test_lone_surrogate_becomes_the_replacement_character(self):
        body = b'{"email_address":"%s","role":"org:member","public_metadata":{"a":"\\ud800"}}' % unique().encode()
        self.assertEqual(self.clerk.ask("POST", INVITATIONS, body).json["public_metadata"], {"a": "\ufffd"})

    def test_deep_nesting(self):
        """As deep as 8 kB allow. Python's own parser would not follow, so the answer is compared as bytes."""
        deep = b"[" * 4000 + b"]" * 4000
        body = b'{"email_address":"%s","role":"org:member","public_metadata":{"a":%s}}' % (unique().encode(), deep)
        answer = self.clerk.ask("POST", INVITATIONS, body)
        self.assertEqual(answer.status, 200)
        self.assertIn(deep, answer.raw)


class LedgerTest(ServerTest):
    def test_second_pending_invitation_is_refused_and_not_created(self):
        address = unique("Case")
        first = self.clerk.create(address).json
        self.assert_refused(self.clerk.create(address.upper()), 400, "organization_invitation_not_unique")
        self.assertEqual(self.clerk.list(email_address=address).json["total_count"], 1)
        elsewhere = self.clerk.ask("POST", "/v1/organizations/org_2/invitations", invitation(address))
        self.assertEqual(elsewhere.status, 200)
        self.clerk.ask("POST", f"{INVITATIONS}/{first['id']}/revoke")
        self.assertEqual(self.clerk.create(address).status, 200)

    def test_member(self):
        address = unique("member")
        answer = self.clerk.create(address)
        self.assert_refused(answer, 400, "already_a_member_in_organization")
        self.assertIn(address, answer.error["long_message"])
        self.assertNotIn("meta", answer.error)
        added = unique()
        self.clerk.control("add_member", organization_id="org_1", email_address=added)
        self.assertEqual(self.clerk.create(added).code, "already_a_member_in_organization")

    def test_acceptance_makes_a_member(self):
        address = unique()
        created = self.clerk.create(address).json
        self.assertEqual(self.clerk.control("accept", id=created["id"]).json["status"], "accepted")
        self.assertEqual(self.clerk.create(address).code, "already_a_member_in_organization")
        self.assertIsNone(self.clerk.ask("GET", f"{INVITATIONS}/{created['id']}").json["url"])

    def test_expired_invitation_is_no_obstacle(self):
        address = unique()
        created = self.clerk.create(address).json
        self.assertEqual(self.clerk.control("expire", id=created["id"]).json["status"], "expired")
        self.assertEqual(self.clerk.create(address).status, 200)
        statuses = [each["status"] for each in self.clerk.list(email_address=address).json["data"]]
        self.assertEqual(statuses, ["pending", "expired"])

    def test_get_and_revoke(self):
        created = self.clerk.create(unique()).json
        path = f"{INVITATIONS}/{created['id']}"
        self.assertEqual(self.clerk.ask("GET", path).json, created)
        wrong_organization = path.replace("org_1", "org_2")
        self.assert_refused(self.clerk.ask("GET", wrong_organization), 404, "resource_not_found")
        stranger = self.clerk.ask("POST", path + "/revoke", {"requesting_user_id": "user_stranger"})
        self.assert_refused(stranger, 403, "not_a_member_in_organization")
        revoked = self.clerk.ask("POST", path + "/revoke", {"requesting_user_id": "user_1"})
        self.assertEqual((revoked.status, revoked.json["status"]), (200, "revoked"))
        again = self.clerk.ask("POST", path + "/revoke")
        self.assert_refused(again, 404, "organization_invitation_not_pending")

    def test_control_endpoints(self):
        created = self.clerk.create(unique(), notify=False).json
        self.assertEqual(self.clerk.control("revoke_as_admin", id=created["id"]).json["status"], "revoked")
        ledger = self.clerk.ask("GET", "/_fake/invitations", Authorization=None)
        self.assertNotIn(b"ticket", ledger.raw)
        self.assertIs(ledger.json["data"][-1]["notify"], False)
        self.assertEqual(self.clerk.control("accept", id="orginv_nobody").status, 400)
        self.assertEqual(self.clerk.control("accept").status, 400)
        self.assertEqual(self.clerk.control("nothing").status, 404)

    def test_organization_that_is_deleted(self):
        path = "/v1/organizations/org_deleted/invitations"
        kept, lost = unique(), unique()
        self.clerk.create(kept)
        created = self.clerk.ask("POST", path, invitation(lost)).json
        self.clerk.control("delete_organization", organization_id="org_deleted")
        for rest in ("", "/" + created["id"]):
            self.assert_refused(self.clerk.ask("GET", path + rest), 404, "organization_not_found_or_unauthorized")
        self.assertFalse(self.clerk.exists(lost))
        self.assertTrue(self.clerk.exists(kept))

    def test_somebody_else_invites(self):
        address = unique()
        self.assertEqual(self.clerk.control("invite", organization_id="org_1", email_address=address).status, 200)
        self.assert_refused(self.clerk.create(address), 400, "organization_invitation_not_unique")
        self.assertEqual(
            [(each["origin"], each["status"]) for each in self.clerk.ledger(address)], [("control", "pending")]
        )

    def test_what_happens_meanwhile(self):
        for act, status in (("accepts", "accepted"), ("revokes", "revoked")):
            address = f"meanwhile@{act}-20.example.com"
            self.assertEqual(self.clerk.create(address).json["status"], "pending")
            self.wait_for(address, status)

    def test_ledger_has_what_is_deleted(self):
        address = unique()
        self.clerk.ask("POST", "/v1/organizations/org_left/invitations", invitation(address))
        self.clerk.control("delete_organization", organization_id="org_left")
        self.assertEqual([each["deleted"] for each in self.clerk.ledger(address)], [True])

    def wait_for(self, address: str, status: str):
        deadline = time.monotonic() + PATIENCE
        while [each["status"] for each in self.clerk.ledger(address)] != [status]:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def test_down(self):
        self.clerk.control("down", down=True)
        self.assert_refused(self.clerk.list(), 503, "maintenance_mode")
        self.clerk.control("down", down=False)
        self.assertEqual(self.clerk.list().status, 200)


class NormalizingTest(ServerTest):
    options = tuple(f"--normalize={name}" for name in ("white-space", "punycode", "lower-case", "tag"))

    def test_single(self):
        answer = self.clerk.create(" An n+x@Bücher.example ")
        self.assertEqual(answer.json["email_address"], "ann@xn--bcher-kva.example")
        self.assert_refused(
            self.clerk.create("ann@xn--bcher-kva.EXAMPLE"), 400, "organization_invitation_not_unique"
        )
        found = self.clerk.list(email_address="ann+y@bücher.example").json["data"]
        self.assertEqual([each["email_address"] for each in found], ["ann@xn--bcher-kva.example"])

    def test_bulk(self):
        batch = [invitation("b ob@bücher.example"), invitation("bob@straße.example")]
        data = self.clerk.ask("POST", BULK, batch).json["data"]
        self.assertEqual(
            [each["email_address"] for each in data], ["bob@xn--strae-oqa.example", "bob@xn--bcher-kva.example"]
        )
        self.assert_refused(
            self.clerk.ask("POST", BULK, [invitation("cy@a.example"), invitation("c y@a.example")]),
            400,
            "duplicate_record",
        )


class ExactFilterTest(ServerTest):
    options = ("--normalize=white-space", "--exact-filter")

    def test_filter(self):
        self.assertEqual(self.clerk.create("a nn@filter.example").status, 200)
        self.assertEqual(self.clerk.list(email_address="a nn@filter.example").json["data"], [])
        self.assertEqual(len(self.clerk.list(email_address="ann@filter.example").json["data"]), 1)


class CapTest(ServerTest):
    options = ("--membership-cap", "2", "--organization", "org_1")

    def test_members_and_pending_invitations_count(self):
        self.clerk.control("add_member", organization_id="org_1", email_address=unique())
        first = self.clerk.create(unique()).json
        self.assert_refused(self.clerk.create(unique()), 403, "organization_membership_quota_exceeded")
        self.clerk.control("expire", id=first["id"])
        self.assertEqual(self.clerk.create(unique()).status, 200)
        self.clerk.control("reset")

    def test_batch_that_does_not_fit_is_refused_as_a_whole(self):
        addresses = [unique() for _ in range(3)]
        batch = [invitation(address) for address in addresses]
        self.assert_refused(self.clerk.ask("POST", BULK, batch), 403, "organization_membership_quota_exceeded")
        self.assertFalse(any(map(self.clerk.exists, addresses)))
        self.assertEqual(self.clerk.ask("POST", BULK, batch[:2]).status, 200)
        self.assert_refused(self.clerk.create(addresses[2]), 403, "organization_membership_quota_exceeded")
        self.clerk.control("reset")

    def test_only_named_organizations_exist(self):
        answer = self.clerk.ask("GET", "/v1/organizations/org_2/invitations")
        self.assert_refused(answer, 404, "organization_not_found_or_unauthorized")


class ListTest(ServerTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.addresses = [f"{letter}@List.example" for letter in "hcafbegdijkl"]
        cls.created = [cls.clerk.create(address).json for address in cls.addresses]
        cls.clerk.control("accept", id=cls.created[0]["id"])
        cls.clerk.control("revoke_as_admin", id=cls.created[1]["id"])

    def listed(self, **query) -> list:
        return [each["email_address"] for each in self.clerk.list(**query).json["data"]]

    def test_pages(self):
        newest_first = self.addresses[::-1]
        self.assertEqual(self.listed(), newest_first[:10])
        self.assertEqual(self.clerk.list().json["total_count"], 12)
        self.assertEqual(self.listed(limit=5, offset=10), newest_first[10:])
        self.assertEqual(self.listed(limit=500), newest_first)
        self.assertEqual(self.listed(offset=99), [])

    def test_order(self):
        self.assertEqual(self.listed(limit=500, order_by="+created_at"), self.addresses)
        self.assertEqual(self.listed(limit=500, order_by="email_address"), sorted(self.addresses))
        self.assertEqual(self.listed(limit=500, order_by="-email_address"), sorted(self.addresses)[::-1])

    def test_filters(self):
        self.assertEqual(self.listed(email_address="A@list.EXAMPLE"), ["a@List.example"])
        self.assertEqual(self.listed(email_address="a@list"), [])
        self.assertEqual(self.listed(status="accepted"), ["h@List.example"])
        self.assertEqual(self.listed(status="revoked"), ["c@List.example"])

    def test_unusable_parameters(self):
        cases = {
            "limit": ("0", "501", "x", "-1"),
            "offset": ("-1", "x"),
            "status": ("open",),
            "order_by": ("id", " created_at"),
        }
        for name, values in cases.items():
            for value in values:
                answer = self.clerk.list(**{name: value})
                self.assert_refused(answer, 422, "form_param_value_invalid")
                self.assertEqual(answer.error["meta"]["param_name"], name)

    def test_instance_wide(self):
        self.clerk.ask("POST", "/v1/organizations/org_2/invitations", invitation("a@list.example"))
        answer = self.clerk.ask("GET", "/v1/organization_invitations?query=A@list.EXAMPLE&order_by=created_at")
        organizations = [each["public_organization_data"]["id"] for each in answer.json["data"]]
        self.assertEqual(organizations, ["org_1", "org_2"])
        for wanted in (self.created[3]["id"], "a@list"):
            answer = self.clerk.ask("GET", "/v1/organization_invitations?query=" + wanted)
            self.assertEqual(answer.json, {"data": [], "total_count": 0})

    def test_from_a_domain(self):
        shown = self.clerk.control("invite_from_domain", organization_id="org_domain", email_address="z@list.example")
        path = "/v1/organizations/org_domain/invitations"
        lists = (path, path + "?email_address=z@list.example", "/v1/organization_invitations?query=z@list.example")
        for each in lists:
            self.assertEqual(self.clerk.ask("GET", each).json["total_count"], 0)
        answer = self.clerk.ask("POST", path, invitation("Z@list.example"))
        self.assert_refused(answer, 400, "organization_invitation_not_unique")
        self.clerk.control("revoke_as_admin", id=shown.json["id"])
        self.assertEqual(self.clerk.ask("POST", path, invitation("Z@list.example")).status, 200)

    def test_pages_that_are_not_as_asked_for(self):
        def misbehaving(behaviour, **query):
            self.clerk.control("misbehave", operation="ListOrganizationInvitations", behaviour=behaviour)
            return self.listed(**query)

        self.assertEqual(misbehaving("first-page", limit=3, offset=6), self.listed(limit=3))
        self.assertEqual(misbehaving("page-of-2", limit=9, offset=6), self.listed(limit=2, offset=6))
        self.assertEqual(misbehaving("any-order", order_by="+created_at"), self.listed())
        batch = [invitation(f"tie-{number}@example.com") for number in range(3)]
        self.clerk.ask("POST", "/v1/organizations/org_tie/invitations/bulk", batch)
        for behaviour, wanted in (("slow-0", "012"), ("ties-reversed", "210")):
            self.clerk.control("misbehave", operation="ListOrganizationInvitations", behaviour=behaviour)
            answer = self.clerk.ask("GET", "/v1/organizations/org_tie/invitations?order_by=created_at")
            numbers = [each["email_address"][4] for each in answer.json["data"]]
            self.assertEqual("".join(numbers), wanted)


class RepeatedStatusTest(ServerTest):
    """Clerk contradicts itself about several statuses: one that refuses them, by default, and three that do not."""

    honored = ()

    def test_repeated_status(self):
        for name in ("accepted", "revoked", "pending"):
            created = self.clerk.create(f"{name}@status.example").json
            if name != "pending":
                self.clerk.control("accept" if name == "accepted" else "revoke_as_admin", id=created["id"])
        answer = self.clerk.ask("GET", INVITATIONS + "?status=revoked&status=accepted&order_by=created_at")
        if not self.honored:
            self.assert_refused(answer, 422, "form_param_value_invalid")
            self.assertEqual(len(self.clerk.violations()), 1)
            return
        self.assertEqual([each["status"] for each in answer.json["data"]], list(self.honored))
        self.assertEqual(self.clerk.violations(), [])
        answer = self.clerk.ask("GET", INVITATIONS + "?status=open&status=accepted")
        self.assert_refused(answer, 422, "form_param_value_invalid")


class AllStatusesTest(RepeatedStatusTest):
    options = ("--repeated-status", "all")
    honored = ("accepted", "revoked")


class FirstStatusTest(RepeatedStatusTest):
    options = ("--repeated-status", "first")
    honored = ("revoked",)


class LastStatusTest(RepeatedStatusTest):
    options = ("--repeated-status", "last")
    honored = ("accepted",)


class IgnoredOrderTest(ServerTest):
    options = ("--ignore-order", "email_address")

    def test_order(self):
        for letter in "bca":
            self.clerk.create(f"{letter}@order.example")
        for order in ("created_at", "-created_at", "email_address"):
            answer = self.clerk.list(order_by=order, limit=2)
            self.assertEqual([each["email_address"][0] for each in answer.json["data"]], ["c", "b"])


class OwnClient(FakeClerk):
    """A client that sends what clerk_invite sends."""

    client_options = []

    def send(self, connection, method: str, path: str, body=None, **headers):
        own = {"Accept": "application/json", "Clerk_API_Version": "2026-05-12", "User_Agent": "clerk_invite/1 PostgreSQL/1"}
        connection.putrequest = functools.partial(connection.putrequest, skip_accept_encoding=True)
        super().send(connection, method, path, body, **{**own, **headers})


class ContractTest(unittest.TestCase):
    """A request that violates the contract is refused, whatever else becomes of it, and noted; no other is."""

    def setUp(self):
        self.clerk = OwnClient()

    def tearDown(self):
        self.assertEqual(self.clerk.stop(), "")

    def test_violations(self):
        address = "x-500@example.com"  # would misbehave
        new = invitation(address)
        path = INVITATIONS + "/orginv_1"
        lists = (INVITATIONS, "/v1/organization_invitations")
        cases = [
            ("POST", INVITATIONS, {**new, "team": "red"}, {}, "body: .*'team'"),
            ("POST", INVITATIONS, {"email_address": address}, {}, "body: 'role'"),
            ("POST", INVITATIONS, {**new, "expires_in_days": 366}, {}, "body.expires_in_days: violates maximum"),
            ("POST", INVITATIONS, {**new, "expires_in_days": 7.0}, {}, "body.expires_in_days: violates type"),
            ("POST", INVITATIONS, {**new, "notify": "true"}, {}, "body.notify: violates type"),
            ("POST", INVITATIONS, {**new, "public_metadata": []}, {}, "body.public_metadata: violates type"),
            ("POST", INVITATIONS, {**new, "role": ""}, {}, "body.role: violates minLength"),
            ("POST", INVITATIONS, [new], {}, "body: violates type"),
            ("POST", INVITATIONS, None, {}, "the whole: 'body'"),
            ("POST", INVITATIONS, b"{", {}, "body: request_body_invalid"),
            ("POST", INVITATIONS + "?notify=true", new, {}, "query: .*'notify'"),
            ("POST", BULK, {"invitations": [new]}, {}, "body: violates type"),
            ("POST", BULK, [invitation(f"{n}@example.com") for n in range(11)], {}, "body: violates maxItems"),
            ("POST", BULK, [], {}, "body: violates minItems"),
            ("POST", BULK, [invitation("a@example.com"), {**new, "id": 1}], {}, r"body\.1: .*'id'"),
            ("POST", path + "/revoke", {"user": "user_1"}, {}, "body: .*'user'"),
            ("GET", path, {}, {}, "the whole: .*'body'"),
            ("GET", path + "?limit=1", None, {}, "query: .*'limit'"),
            ("GET", "/v1/organizations/org.1/invitations", None, {}, "path.organization_id: violates pattern"),
            ("GET", "/v1/nothing", None, {}, "there is no such operation"),
            ("DELETE", path, None, {}, "there is no such operation"),
            ("GET", path, None, {"Idempotency_Key": "1"}, "headers: .*'idempotency-key'"),
            ("GET", path, None, {"User_Agent": "curl/8"}, "headers.user-agent: violates pattern"),
            ("GET", path, None, {"Clerk_API_Version": "2020-01-01"}, "headers.clerk-api-version: violates enum"),
            ("GET", path, None, {"Clerk_API_Version": None}, "headers: 'clerk-api-version'"),
            ("GET", path, None, {"Authorization": "Basic abc"}, "headers.authorization: violates pattern"),
            ("POST", INVITATIONS, new, {"Content_Type": "text/plain"}, "body: unsupported_content_type"),
        ]
        for one in lists:
            cases += [
                ("GET", one + "?status=pending&status=accepted", None, {}, "query.status: violates maxItems"),
                ("GET", one + "?status=open", None, {}, "query.status.0: violates enum"),
                ("GET", one + "?limit=501", None, {}, "query.limit: violates maximum"),
                ("GET", one + "?limit=1&limit=2", None, {}, "query.limit: violates type"),
                ("GET", one + "?offset=-1", None, {}, "query.offset: violates type"),
                ("GET", one + "?order_by=id", None, {}, "query.order_by: violates enum"),
                ("GET", one + "?page=1", None, {}, "query: .*'page'"),
            ]
        cases.append(("GET", lists[0] + "?query=a", None, {}, "query: .*'query'"))
        cases.append(("GET", lists[1] + "?email_address=a", None, {}, "query: .*'email_address'"))
        for number, (method, where, body, headers, wanted) in enumerate(cases, 1):
            with self.subTest(method=method, where=where, body=body, headers=headers):
                answer = self.clerk.ask(method, where, body, **headers)
                self.assertEqual(answer.status // 100, 4)
                self.assertEqual(len(self.clerk.violations()), number)
                self.assertRegex(self.clerk.violations()[-1], f"^{method} [^ ]+: {wanted}")
                self.assertRegex(self.clerk.journal()[-1]["violations"][0], f"^{wanted}")
        self.assertEqual(self.clerk.ask("GET", "/_fake/invitations").json["total_count"], 0)
        self.assertNotIn("sk_test", "".join(self.clerk.violations()))

    def test_violation_of_a_refused_request(self):
        self.clerk.ask("GET", INVITATIONS + "?page=1", Authorization="Bearer sk_test_wrong")
        self.clerk.control("down", down=True)
        self.assertEqual(self.clerk.ask("GET", INVITATIONS + "?page=1").status, 503)
        self.assertEqual(len(self.clerk.violations()), 2)

    def test_operations(self):
        everything = invitation(
            "all@example.com",
            inviter_user_id="user_1",
            public_metadata={"a": [1, None]},
            private_metadata={},
            redirect_url="https://example.com/",
            expires_in_days=365,
            notify=False,
        )
        created = self.clerk.ask("POST", INVITATIONS, everything).json
        one = INVITATIONS + "/" + created["id"]
        nulls = {name: None for name in everything if name not in ("email_address", "role")}
        for method, path, body in (
            ("POST", BULK, [invitation(f"{number}@example.com", **nulls) for number in range(10)]),
            ("GET", one, None),
            ("POST", one + "/revoke", {"requesting_user_id": "user_1"}),
            ("GET", INVITATIONS + "?status=pending&email_address=a&order_by=%2Bcreated_at&limit=500&offset=0", None),
            ("GET", "/v1/organization_invitations?status=revoked&query=a&limit=1&offset=12345", None),
            ("GET", "/v1/organization_invitations", None),
        ):
            self.assertEqual(self.clerk.ask(method, path, body).status, 200)
        self.assertEqual(self.clerk.ask("POST", one + "/revoke", {}).status, 404)
        self.assertEqual(self.clerk.violations(), [])


class AnswerTest(unittest.TestCase):
    """An answer that violates the contract is found out: the fake does not drift from what it stands in for."""

    def check(self, operation: str, document) -> str:
        reply = Reply(200 if "errors" not in document else 400, document)
        violation = Contract().check_reply(operation, reply)
        return violation.text if violation else ""

    def test_answers(self):
        ledger = Ledger(Clock())
        request = InvitationRequest("a@example.com", "org:member", inviter_user_id="user_1")
        shown = ledger.create("org_1", [request])[0].document(0)
        page = {"data": [shown], "total_count": 1}
        self.assertEqual(self.check("GetOrganizationInvitation", shown), "")
        self.assertEqual(self.check("ListOrganizationInvitations", page), "")
        inviter = {**shown["public_inviter_data"], "username": None}
        for document, wanted in (
            ({**shown, "public_inviter_data": inviter}, "public_inviter_data: .*'username'"),
            ({**shown, "email": "a"}, "the whole: .*'email'"),
            ({**shown, "status": "open"}, "status: violates enum"),
            ({**shown, "created_at": 1712345678}, "created_at: violates minimum"),
            ({name: shown[name] for name in shown if name != "role"}, "the whole: 'role'"),
        ):
            self.assertRegex(self.check("GetOrganizationInvitation", document), "^answer: " + wanted)
            in_list = {"data": [document], "total_count": 1}
            self.assertRegex(self.check("ListOrganizationInvitations", in_list), "^answer: data.0")
        self.assertRegex(self.check("ListOrganizationInvitations", {"data": []}), "'total_count'")
        self.assertRegex(self.check("GetOrganizationInvitation", {"errors": []}), "errors: violates minItems")
        self.assertNotIn("ticket", self.check("GetOrganizationInvitation", {**shown, "url": [shown["url"]]}))

    def test_catalogue(self):
        for code in CATALOGUE:
            self.assertEqual(self.check("GetOrganizationInvitation", {"errors": [error_object(code)]}), "")


class RateLimitTest(ServerTest):
    options = ("--single-limit", "2", "--bulk-limit", "1", "--window", "1.5")

    def setUp(self):
        self.clerk.control("reset")

    def create_once_allowed(self) -> Answer:
        """Create as soon as the limit lets it through."""
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            answer = self.clerk.create(unique())
            if answer.status != 429:
                return answer
        self.fail("the limit never let go")

    def test_only_the_exhausted_endpoint_is_blocked(self):
        self.assertEqual(self.clerk.create(unique()).status, 200)
        self.assertEqual(self.clerk.create("no address").status, 422)
        answer = self.clerk.create(unique())
        self.assert_refused(answer, 429, "too_many_requests")
        self.assertIn(answer.headers["Retry-After"], ("1", "2"))
        self.assertEqual(self.clerk.ask("POST", BULK, [invitation(unique())]).status, 200)
        self.assertEqual(self.clerk.ask("POST", BULK, [invitation(unique())]).status, 429)
        self.assertEqual(self.clerk.list().status, 200)

    def test_window_ends(self):
        started = time.monotonic()
        for _ in range(2):
            self.clerk.create(unique())
        self.assertEqual(self.create_once_allowed().status, 200)
        self.assertGreater(time.monotonic() - started, 1.4)


class FixedWindowTest(RateLimitTest):
    options = RateLimitTest.options + ("--window-kind", "fixed")


class JournalTest(ServerTest):
    def test_fields(self):
        address = unique("Journal")
        created = self.clerk.ask("POST", INVITATIONS, invitation(address, public_metadata={"n": 1}))
        entry = self.clerk.journal()[-1]
        reference = {"id": created.json["id"], "email_address": address, "organization_id": "org_1"}
        self.assertEqual(entry["created"], [reference])
        self.assertEqual((entry["method"], entry["path"]), ("POST", INVITATIONS))
        self.assertEqual((entry["query"], entry["violations"]), ({}, []))
        self.assertEqual(entry["headers"]["authorization"], "accepted")
        self.assertEqual(entry["headers"]["content-type"], "application/json")
        self.assertEqual(entry["body"], invitation(address, public_metadata={"n": 1}))
        self.assertEqual((entry["status"], entry["code"], entry["behaviour"]), (200, None, None))
        self.assertLess(abs(entry["time"] / 1000 - time.time()), PATIENCE)
        self.clerk.ask("GET", INVITATIONS + "?a=1&a=2")
        self.assertEqual(self.clerk.journal()[-1]["query"], {"a": ["1", "2"]})

    def test_refusals(self):
        self.clerk.ask("POST", INVITATIONS, b"not JSON \xff", Authorization="Bearer sk_test_wrong")
        entry = self.clerk.journal()[-1]
        self.assertEqual(entry["headers"]["authorization"], "refused")
        self.assertEqual(entry["body"], "not JSON \\xff")
        self.assertEqual((entry["status"], entry["code"], entry["created"]), (401, "clerk_key_invalid", []))

    def test_neither_key_nor_url(self):
        for name in ("x-echo-key", "x-echo-url", "person"):
            self.clerk.create(unique(name))
        self.clerk.list(email_address=KEY)
        with open(self.clerk.journal_path, encoding="utf-8") as journal:
            text = journal.read()
        self.assertNotIn(KEY, text)
        self.assertNotIn("ticket", text)

    def test_connection_numbers_show_reuse(self):
        connection = self.clerk.connect()
        for _ in range(2):
            self.clerk.send(connection, "GET", INVITATIONS)
            connection.getresponse().read()
        connection.close()
        self.clerk.list()
        first, second, third = [entry["connection"] for entry in self.clerk.journal()[-3:]]
        self.assertEqual(first, second)
        self.assertNotEqual(second, third)

    def test_sequence(self):
        self.clerk.list()
        numbers = [entry["seq"] for entry in self.clerk.journal()]
        self.assertEqual(numbers, list(range(1, len(numbers) + 1)))


# What each misbehaviour's answer must be: name, status, code, whether the invitation then exists.
PLAIN_ANSWERS = [
    ("error-409-resource_locked", 409, "resource_locked", False),
    ("error-418-never_heard_of", 418, "never_heard_of", False),
    ("error-503-maintenance_mode-after", 503, "maintenance_mode", True),
    ("500", 500, "internal_clerk_error", False),
    ("500-before", 500, "internal_clerk_error", False),
    ("500-after", 500, "internal_clerk_error", True),
    ("502", 502, "bad_gateway", False),
    ("503", 503, "service_unavailable", False),
    ("504-after", 504, "gateway_timeout", True),
    ("429", 429, "too_many_requests", False),
    ("429-17", 429, "too_many_requests", False),
    ("429-date", 429, "too_many_requests", False),
    ("429-none", 429, "too_many_requests", False),
    ("gone", 410, "gone", False),
    ("several-errors", 422, "form_param_format_invalid", False),
    ("no-meta", 422, "form_param_format_invalid", False),
    ("no-trace", 400, "bad_request", False),
    ("no-ids", 400, "bad_request", False),
    ("partly-error-400-bad_request", 400, "bad_request", False),
    ("echo-key", 400, "bad_request", False),
    ("echo-url", 500, "internal_clerk_error", True),
    ("unheard-of", 501, "unknown_behaviour", False),
]

# Misbehaviours with tests of their own below.
TESTED_APART = [
    "429-empty",
    "errors-not-array",
    "errors-empty",
    "redirect",
    "html-502",
    "html-200",
    "empty-200",
    "empty-500",
    "nested",
    "not-object",
    "huge",
    "trickle",
    "drop",
    "reset",
    "hang",
    "slow-50",
    "together-1",
    "stale",
    "huge-header",
    "half-body",
    "truncated",
    "nul",
    "not-utf8",
    "escaped-nul",
    "latin1",
    "japanese",
    "minimal",
    "extra",
    "odd-times",
    "other-case",
    "left-out",
    "someone-else",
    "twice",
    "without-email_address",
    "late-50",
    "ties-reversed",
    "first-page",
    "page-of-2",
    "any-order",
    "wrong-type-created_at",
]


class MisbehaviourTest(ServerTest):
    """Every line of the table, over plain HTTP; and again over TLS below."""

    options = ("--single-limit", "1000")

    def misbehave(self, name: str, created: bool) -> Answer:
        """Ask for a misbehaviour that answers, and check whether it created what was asked for."""
        address = unique("x-" + name)
        answer = self.clerk.create(address)
        entry = self.clerk.journal()[-1]
        self.assertEqual((entry["behaviour"], entry["status"]), (name, answer.status))
        self.assertEqual([each["email_address"] for each in entry["created"]], [address] if created else [])
        self.assertEqual(self.clerk.exists(address), created)
        return answer

    def test_every_line_of_the_table_is_tested(self):
        names = [name for name, *_ in PLAIN_ANSWERS] + TESTED_APART
        for entry in TABLE:
            self.assertTrue(any(map(entry.pattern.fullmatch, names)), entry.pattern.pattern)

    def test_plain_answers(self):
        for name, status, code, created in PLAIN_ANSWERS:
            with self.subTest(name=name):
                answer = self.misbehave(name, created)
                self.assertEqual((answer.status, answer.code), (status, code))

    def test_details_of_errors(self):
        meta = self.misbehave("error-402-insufficient_seats", False).error["meta"]
        self.assertEqual(list(meta), ["seats_quantity"])
        meta = self.misbehave("error-422-form_param_value_invalid", False).error["meta"]
        self.assertEqual(meta, {"param_name": "email_address"})
        answer = self.misbehave("error-403-not_allowed_access", False)
        self.assertIn(answer.error["meta"]["identifiers"][0], answer.error["long_message"])
        culprit = unique("x-error-400-duplicate_record")
        answer = self.clerk.ask("POST", BULK, [invitation(unique()), invitation(culprit)])
        self.assertEqual(answer.error["meta"]["email_addresses"], [culprit])
        self.assertEqual(len(self.misbehave("several-errors", False).json["errors"]), 3)
        self.assertNotIn("meta", self.misbehave("no-meta", False).error)
        self.assertIn(KEY, self.misbehave("echo-key", False).error["long_message"])
        self.assertIn("?ticket=", self.misbehave("echo-url", True).error["long_message"])
        self.assertEqual(self.misbehave("errors-not-array", False).json["errors"], "something went wrong")
        self.assertEqual(self.misbehave("errors-empty", False).json["errors"], [])

    def test_trace_ids(self):
        answer = self.misbehave("no-trace", False)
        self.assertNotIn("clerk_trace_id", answer.json)
        self.assertIsNone(answer.headers["x-clerk-trace-id"])
        self.assertTrue(answer.headers["cf-ray"])
        self.assertIsNone(self.misbehave("no-ids", False).headers["cf-ray"])

    def test_retry_after(self):
        self.assertEqual(self.misbehave("429", False).headers["Retry-After"], "1")
        self.assertEqual(self.misbehave("429-17", False).headers["Retry-After"], "17")
        self.assertIsNone(self.misbehave("429-none", False).headers["Retry-After"])
        answer = self.misbehave("429-date", False)
        date, retry_after = answer.headers["Date"], answer.headers["Retry-After"]
        self.assertGreater(parsedate_to_datetime(retry_after), parsedate_to_datetime(date))
        answer = self.misbehave("429-empty", False)
        self.assertEqual((answer.raw, answer.headers["Retry-After"]), (b"", "1"))

    def test_bodies_that_are_not_clerks(self):
        for name, created in (("html-502", False), ("html-200", False), ("html-200-after", True)):
            answer = self.misbehave(name, created)
            self.assertIn("text/html", answer.headers["content-type"])
            self.assertIn(b"<html>", answer.raw)
        self.assertEqual(self.misbehave("empty-200", False).raw, b"")
        self.assertEqual(self.misbehave("empty-500-after", True).status, 500)
        self.assertEqual(len(self.misbehave("nested", False).raw), 200_000)
        self.assertIsInstance(self.misbehave("not-object", False).json, list)

    def ask_for_batch(self, name: str) -> list:
        """The addresses of a batch in whose middle is one that misbehaves."""
        return [unique("First"), unique("x-" + name), unique("Last")]

    def send_batch(self, addresses: list, **options) -> Answer:
        return self.clerk.ask("POST", BULK, [invitation(address) for address in addresses], **options)

    def created_of(self, addresses: list) -> list:
        """Which of these exist, by the journal as well."""
        entry = self.clerk.journal()[-1]
        existing = [address for address in addresses if self.clerk.exists(address)]
        self.assertEqual([each["email_address"] for each in entry["created"]], existing)
        return existing

    def test_order_of_a_batch(self):
        addresses = self.ask_for_batch("extra")
        answered = [each["email_address"] for each in self.send_batch(addresses).json["data"]]
        self.assertEqual(answered, addresses[::-1])

    def test_batch_that_is_not_answered(self):
        cases = [
            ("drop-before", http.client.RemoteDisconnected, False),
            ("drop-after", http.client.RemoteDisconnected, True),
            ("reset-after", ConnectionResetError, True),
            ("half-body", http.client.IncompleteRead, True),
        ]
        for name, error, created in cases:
            with self.subTest(name=name):
                addresses = self.ask_for_batch(name)
                self.assertRaises(error, self.send_batch, addresses)
                self.assertEqual(self.created_of(addresses), addresses if created else [])
        addresses = self.ask_for_batch("hang-after")
        self.assertRaises(socket.timeout, self.send_batch, addresses, timeout=IMPATIENCE)
        self.assertEqual(self.created_of(addresses), addresses)

    def test_batch_that_is_answered_badly(self):
        cases = [("500-before", 500, False), ("500-after", 500, True), ("html-502-after", 502, True)]
        for name, status, created in cases:
            with self.subTest(name=name):
                addresses = self.ask_for_batch(name)
                self.assertEqual(self.send_batch(addresses).status, status)
                self.assertEqual(self.created_of(addresses), addresses if created else [])
        addresses = self.ask_for_batch("truncated")
        self.assertRaises(ValueError, lambda: self.send_batch(addresses).json)
        self.assertEqual(self.created_of(addresses), addresses)

    def test_batch_that_is_refused_for_one(self):
        """The culprit is named in meta.email_addresses, meta.identifiers, the long message only, or nowhere."""
        cases = [
            (400, "duplicate_record", "email_addresses", True),
            (400, "organization_invitation_not_unique", "email_addresses", False),
            (403, "not_allowed_access", "identifiers", True),
            (400, "already_a_member_in_organization", None, True),
            (422, "form_param_format_invalid", None, False),
        ]
        for status, code, name_in_meta, named_in_message in cases:
            with self.subTest(code=code):
                addresses = self.ask_for_batch(f"error-{status}-{code}")
                answer = self.send_batch(addresses)
                self.assert_refused(answer, status, code)
                self.assertEqual(self.created_of(addresses), [])
                meta = answer.error.get("meta", {})
                named = {name: meta[name] for name in ("email_addresses", "identifiers") if name in meta}
                self.assertEqual(named, {name_in_meta: [addresses[1]]} if name_in_meta else {})
                self.assertEqual(addresses[1] in answer.error["long_message"], named_in_message)

    def test_batch_that_is_refused_for_several(self):
        pending = [unique(), unique()]
        for address in pending:
            self.clerk.create(address)
        answer = self.send_batch([pending[0], unique(), pending[1]])
        self.assertEqual(answer.error["meta"], {"email_addresses": pending})

    def test_batch_that_is_refused_once(self):
        addresses = self.ask_for_batch("error-400-bad_request-once")
        self.assertEqual([self.send_batch(addresses).status for _ in range(2)], [400, 200])

    def test_batch_of_which_a_part_is_created(self):
        addresses = self.ask_for_batch("partly-error-400-duplicate_record")
        answer = self.send_batch(addresses)
        self.assert_refused(answer, 400, "duplicate_record")
        self.assertEqual(answer.error["meta"], {"email_addresses": addresses[1:2]})
        self.assertEqual(self.created_of(addresses), addresses[:1])
        addresses = [unique() for _ in range(4)]
        behaviour = "partly-error-500-internal_clerk_error"
        self.clerk.control("misbehave", operation="CreateOrganizationInvitationBulk", behaviour=behaviour)
        self.assertEqual(self.send_batch(addresses).status, 500)
        self.assertEqual(self.created_of(addresses), addresses[:2])

    def test_addresses_in_another_case(self):
        addresses = self.ask_for_batch("other-case")
        answered = {each["email_address"] for each in self.send_batch(addresses).json["data"]}
        self.assertEqual(answered, {address.swapcase() for address in addresses})
        self.assertEqual(self.created_of(addresses), addresses)
        address = unique("x-other-case")
        self.assertEqual(self.clerk.create(address).json["email_address"], address.swapcase())

    def test_member_of_a_batch_that_is_left_out(self):
        addresses = self.ask_for_batch("left-out")
        document = self.send_batch(addresses).json
        self.assertEqual({each["email_address"] for each in document["data"]}, {addresses[0], addresses[2]})
        self.assertEqual(document["total_count"], 2)
        self.assertEqual(self.created_of(addresses), addresses)
        self.assertEqual(self.misbehave("left-out", True).status, 200)

    def test_batch_with_someone_else(self):
        addresses = self.ask_for_batch("someone-else")
        document = self.send_batch(addresses).json
        expected = {addresses[0], "someone-else@example.com", addresses[2]}
        self.assertEqual({each["email_address"] for each in document["data"]}, expected)
        self.assertEqual(self.created_of(addresses), addresses)
        self.assertEqual(self.misbehave("someone-else", True).json["email_address"], "someone-else@example.com")

    def test_member_of_a_batch_twice(self):
        addresses = self.ask_for_batch("twice")
        document = self.send_batch(addresses).json
        self.assertEqual([each["email_address"] for each in document["data"]], addresses[::-1] + addresses[:1])
        self.assertEqual(self.created_of(addresses), addresses)
        self.assertEqual(self.misbehave("twice", True).status, 200)

    def test_field_left_out(self):
        for document in self.send_batch(self.ask_for_batch("without-email_address")).json["data"]:
            self.assertNotIn("email_address", document)
            self.assertIn("id", document)
        self.assertNotIn("id", self.misbehave("without-id", True).json)

    def test_limit_on_batches_only(self):
        self.clerk.control("misbehave", operation="CreateOrganizationInvitationBulk", behaviour="429-17", times=2)
        addresses = [unique(), unique()]
        for _ in range(2):
            answer = self.send_batch(addresses)
            self.assert_refused(answer, 429, "too_many_requests")
            self.assertEqual(answer.headers["Retry-After"], "17")
        self.assertEqual(self.clerk.create(unique()).status, 200)
        self.assertEqual(self.send_batch(addresses).status, 200)

    def test_redirect(self):
        answer = self.misbehave("redirect", False)
        self.assertEqual(answer.status, 307)
        self.assertEqual(self.clerk.ask("POST", answer.headers["location"]).status, 404)

    def test_altered_invitations(self):
        self.assertRaises(ValueError, lambda: self.misbehave("truncated", True).json)
        self.assertIn(b"Mem\0ber", self.misbehave("nul", True).raw)
        self.assertRaises(UnicodeDecodeError, self.misbehave("not-utf8", True).raw.decode)
        self.assertIn(b"Mem\\u0000ber", self.misbehave("escaped-nul", True).raw)
        self.assertEqual(self.misbehave("latin1", True).json["role_name"], "Geschäftsführer")
        self.assertEqual(self.misbehave("japanese", True).json["role_name"], "メンバー")
        minimal = {"id", "email_address", "role", "created_at", "updated_at"}
        self.assertEqual(set(self.misbehave("minimal", True).json), minimal)
        self.assertIn("a_new_field", self.misbehave("extra", True).json)
        self.assertIn(b'"expires_at":1e400', self.misbehave("odd-times", True).raw)
        self.assertEqual(self.misbehave("wrong-type-created_at", True).json["created_at"], {"unexpected": "object"})
        self.assertEqual(self.misbehave("wrong-type-role_name", True).json["role_name"], 42)

    def test_altered_bulk(self):
        addresses = [unique(), unique("x-wrong-type-role_name"), unique("x-500")]
        answer = self.clerk.ask("POST", BULK, [invitation(address) for address in addresses])
        self.assertEqual([each["role_name"] for each in answer.json["data"]], [42, 42, 42])
        addresses = [unique(), unique("x-wrong-type-data")]
        answer = self.clerk.ask("POST", BULK, [invitation(address) for address in addresses])
        self.assertEqual(answer.json, {"data": 42, "total_count": 2})

    def test_refusals_are_not_altered(self):
        address = unique("x-truncated")
        self.clerk.create(address)
        self.assertEqual(self.clerk.create(address).code, "organization_invitation_not_unique")

    def fail_to_answer(self, name: str, error, created: bool, timeout: float = PATIENCE):
        """Ask for a misbehaviour that does not answer; it must be in the journal all the same."""
        address = unique("x-" + name)
        with self.assertRaises(error) as raised:
            self.clerk.ask("POST", INVITATIONS, invitation(address), timeout=timeout)
        entry = self.clerk.journal()[-1]
        self.assertEqual((entry["behaviour"], entry["status"]), (name, None))
        self.assertEqual(len(entry["created"]), int(created))
        self.assertEqual(self.clerk.exists(address), created)
        return raised.exception

    def test_dropped_connection(self):
        self.fail_to_answer("drop", http.client.RemoteDisconnected, False)
        self.fail_to_answer("drop-before", http.client.RemoteDisconnected, False)
        self.fail_to_answer("drop-after", http.client.RemoteDisconnected, True)

    def test_reset_connection(self):
        for name, created in (("reset", False), ("reset-before", False), ("reset-after", True)):
            error = self.fail_to_answer(name, ConnectionResetError, created)
            if not self.tls:  # over TLS, Python's client takes a reset for an end
                self.assertNotIsInstance(error, http.client.RemoteDisconnected)

    def test_no_answer(self):
        self.fail_to_answer("hang", socket.timeout, False, IMPATIENCE)
        self.fail_to_answer("hang-after", socket.timeout, True, IMPATIENCE)

    def test_half_body(self):
        address = unique("x-half-body")
        self.assertRaises(http.client.IncompleteRead, self.clerk.create, address)
        self.assertTrue(self.clerk.exists(address))

    def test_slow(self):
        started = time.monotonic()
        self.assertEqual(self.misbehave("slow-50", True).status, 200)
        self.assertGreaterEqual(time.monotonic() - started, 0.05)

    def test_together(self):
        """The first of two gets its answer when the second has arrived."""
        first, second = self.clerk.connect(), self.clerk.connect()
        self.addCleanup(first.close)
        self.addCleanup(second.close)
        self.clerk.send(first, "POST", INVITATIONS, invitation(unique("x-together-2")))
        first.sock.settimeout(IMPATIENCE)
        self.assertRaises(socket.timeout, first.sock.recv, 1)
        first.sock.settimeout(PATIENCE)
        self.clerk.send(second, "POST", INVITATIONS, invitation(unique("x-together-2")))
        self.assertEqual([each.getresponse().status for each in (first, second)], [200, 200])

    def test_long_header(self):
        """Longer than Python's client takes, too."""
        self.assertRaises(http.client.LineTooLong, self.clerk.create, unique("x-huge-header"))

    def test_stale_connection(self):
        connection = self.clerk.connect()
        self.addCleanup(connection.close)
        self.clerk.send(connection, "POST", INVITATIONS, invitation(unique("x-stale")))
        answer = connection.getresponse()
        self.assertEqual((answer.status, answer.headers["connection"]), (200, None))
        answer.read()
        self.assertEqual(connection.sock.recv(1), b"")

    def read_start_of_endless_body(self, name: str, wanted: int):
        connection = self.clerk.connect()
        self.clerk.send(connection, "POST", INVITATIONS, invitation(unique("x-" + name)))
        answer = connection.getresponse()
        self.assertEqual(answer.status, 200)
        self.assertGreater(int(answer.headers["content-length"]), wanted)
        self.assertEqual(len(answer.read(wanted)), wanted)
        connection.close()

    def test_endless_bodies_end_with_the_client(self):
        self.read_start_of_endless_body("trickle", 2)
        self.read_start_of_endless_body("huge", 1_000_000)
        self.assertEqual(self.clerk.list().status, 200)

    def test_late(self):
        address = unique("x-late-50")
        with self.assertRaises((OSError, http.client.HTTPException)):
            self.clerk.create(address)
        deadline = time.monotonic() + PATIENCE
        while not self.clerk.exists(address):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def test_once(self):
        for name in ("500-once", "drop-once", "500-after-once", "gone-once"):
            with self.subTest(name=name):
                address = unique("x-" + name)
                try:
                    self.assertGreaterEqual(self.clerk.create(address).status, 400)
                except http.client.RemoteDisconnected:
                    pass
                again = self.clerk.create(address)
                self.assertEqual(again.status, 400 if "after" in name else 200)
                self.assertIsNone(self.clerk.journal()[-1]["behaviour"])

    def test_ordered_misbehaviour(self):
        self.clerk.control("misbehave", operation="ListOrganizationInvitations", behaviour="502", times=2)
        self.assertEqual([self.clerk.list().status for _ in range(3)], [502, 502, 200])
        unknown = self.clerk.control("misbehave", operation="ListOrganizationInvitations", behaviour="5o2")
        self.assertEqual(unknown.status, 400)


class MisbehaviourOverTlsTest(MisbehaviourTest):
    tls = True


class CommandTest(unittest.TestCase):
    def test_sigterm_ends_it_quietly(self):
        clerk = FakeClerk()
        clerk.process.send_signal(signal.SIGTERM)
        self.assertEqual(clerk.process.wait(PATIENCE), 0)
        self.assertEqual(clerk.stop(), "")

    def test_end_of_stdin_ends_it(self):
        clerk = FakeClerk()
        self.assertEqual(clerk.stop(), "")
        self.assertEqual(clerk.process.returncode, 0)

    def test_clock_offset(self):
        clerk = FakeClerk("--clock-offset", "3600")
        created = clerk.create(unique())
        clerk.stop()
        ahead = created.json["created_at"] / 1000 - time.time()
        self.assertAlmostEqual(ahead, 3600, delta=PATIENCE)
        date = parsedate_to_datetime(created.headers["Date"]).timestamp()
        self.assertAlmostEqual(date, created.json["created_at"] / 1000, delta=PATIENCE)

    def test_hosts_that_others_could_reach(self):
        for host in ("0.0.0.0", "::", "8.8.8.8", "10.77.2.1", "somewhere"):
            done = subprocess.run(
                [sys.executable, PROGRAM, "--exit-with-stdin", "--host", host],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=PATIENCE,
            )
            self.assertEqual(done.returncode, 2, host)

    def test_clock_that_is_set(self):
        clerk = FakeClerk()
        clerk.control("clock", offset=-600)
        created = clerk.create(unique())
        clerk.stop()
        self.assertAlmostEqual(created.json["created_at"] / 1000 - time.time(), -600, delta=PATIENCE)
        date = parsedate_to_datetime(created.headers["Date"]).timestamp()
        self.assertAlmostEqual(date, created.json["created_at"] / 1000, delta=PATIENCE)

    def test_latency(self):
        clerk = FakeClerk("--latency", "0.2")
        begun = time.monotonic()
        clerk.create(unique())
        self.assertGreaterEqual(time.monotonic() - begun, 0.2)
        clerk.stop()

    def test_memory(self):
        memory = os.path.join(directory.name, f"memory-{next(_numbers)}")
        first = FakeClerk("--memory", memory)
        created = [first.create(unique(), public_metadata={"rate": 1.5}).json for _ in range(4)]
        first.ask("POST", "/v1/organizations/org_left/invitations", invitation("left@example.com"))
        first.control("accept", id=created[0]["id"])
        first.control("revoke_as_admin", id=created[1]["id"])
        first.control("expire", id=created[2]["id"])
        first.control("delete_organization", organization_id="org_left")
        first.control("clock", offset=3600)
        before = [first.ask("GET", f"{INVITATIONS}/{each['id']}").json for each in created]
        history = first.ask("GET", "/_fake/ledger", Authorization=None).json
        first.process.kill()
        first.process.wait(PATIENCE)
        first.stop()
        with open(memory, "ab") as file:
            file.write(b'{"created": [{"seq')  # killed in the middle

        second = FakeClerk("--memory", memory)
        self.assertEqual([second.ask("GET", f"{INVITATIONS}/{each['id']}").json for each in created], before)
        self.assertEqual(second.ask("GET", "/_fake/ledger", Authorization=None).json, history)
        again = second.create(created[0]["email_address"])
        self.assertEqual((again.status, again.code), (400, "already_a_member_in_organization"))
        new = second.create(unique()).json
        second.stop()
        third = FakeClerk("--memory", memory)
        self.assertEqual(third.ask("GET", f"{INVITATIONS}/{new['id']}").status, 200)
        third.control("reset")
        third.stop()
        fourth = FakeClerk("--memory", memory)
        self.assertEqual(fourth.list().json["total_count"], 0)
        fourth.stop()

    def test_client_that_leaves_a_tls_handshake(self):
        clerk = FakeClerk(tls=True)
        plain = http.client.HTTPConnection("127.0.0.1", clerk.port, timeout=PATIENCE)
        with self.assertRaises((OSError, http.client.HTTPException)):
            plain.request("GET", "/")
            plain.getresponse()
        plain.close()
        self.assertEqual(clerk.list().status, 200)
        self.assertEqual(clerk.stop(), "")


if __name__ == "__main__":
    unittest.main()
