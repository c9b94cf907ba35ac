#!/usr/bin/env python3
"""corpus.py URL KEY: the fake Clerk's responses, as SQL for a table "corpus"

Makes the fake at URL, whose key is KEY, answer each of the six operations well and in each of the ways in which it can
misbehave with an answer.  The table has the columns operation, status, headers, and body.
"""

import http.client
import json
import pathlib
import sys
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from fake_clerk.errors import CATALOGUE  # noqa: E402

# Those that answer at once, and with no more than some kilobytes.
MISBEHAVIOURS = """500 502 503 504 429 429-empty 429-date 429-none gone several-errors no-meta no-trace no-ids
    errors-not-array errors-empty echo-key redirect html-502 html-200 empty-200 empty-500 not-object truncated nul
    not-utf8 escaped-nul latin1 japanese minimal extra odd-times wrong-type-id wrong-type-email_address
    wrong-type-created_at wrong-type-public_metadata wrong-type-url other-case left-out someone-else twice without-id
    without-created_at without-status echo-url""".split()

ORGANIZATION = "/v1/organizations/org_test/invitations"


class Clerk:
    def __init__(self, url: str, key: str):
        self.address = urllib.parse.urlsplit(url).netloc
        self.key = key

    def call(self, operation: str, method: str, path: str, body=None):
        connection = http.client.HTTPConnection(self.address)
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        content = response.read()
        lines = "".join(f"{name}: {value}\r\n" for name, value in response.getheaders())
        head = f"HTTP/1.1 {response.status} {response.reason}\r\n{lines}\r\n".encode()
        connection.close()
        print(f"INSERT INTO corpus VALUES ('{operation}', {response.status}, '\\x{head.hex()}', '\\x{content.hex()}');")
        return content

    def create(self, address: str, **fields):
        return self.call("create", "POST", ORGANIZATION, dict(email_address=address, role="org:member", **fields))

    def bulk(self, addresses):
        body = [{"email_address": address, "role": "org:member"} for address in addresses]
        return self.call("bulk", "POST", ORGANIZATION + "/bulk", body)

    def control(self, operation: str, body):
        connection = http.client.HTTPConnection(self.address)
        connection.request("POST", "/_fake/" + operation, json.dumps(body), {"Content-Type": "application/json"})
        assert connection.getresponse().status < 300, operation
        connection.close()


def main():
    clerk = Clerk(sys.argv[1], sys.argv[2])
    metadata = {"team": {"name": "Größe メ", "ids": [1, 2.5, None, True]}}
    created = [
        json.loads(clerk.create(f"person{i}@example.com", public_metadata=metadata, private_metadata=metadata))["id"]
        for i in range(8)
    ]
    clerk.create("person1@example.com")
    clerk.create("not an address")
    clerk.bulk(["ann@example.com", "bob@example.com", "cem@example.com"])
    clerk.bulk(["ann@example.com", "dora@example.com"])
    clerk.bulk([])
    clerk.call("get", "GET", f"{ORGANIZATION}/{created[0]}")
    clerk.call("get", "GET", f"{ORGANIZATION}/orginv_none")
    clerk.call("revoke", "POST", f"{ORGANIZATION}/{created[0]}/revoke", {"requesting_user_id": None})
    clerk.call("revoke", "POST", f"{ORGANIZATION}/{created[0]}/revoke", {})
    for query in ("limit=3&order_by=%2Bcreated_at", "limit=3&offset=3&order_by=%2Bcreated_at", "limit=500", "limit=0"):
        clerk.call("list", "GET", f"{ORGANIZATION}?{query}")
        clerk.call("list", "GET", f"/v1/organization_invitations?{query}")
    errors = [f"error-{entry.status}-{code}" for code, entry in sorted(CATALOGUE.items())]
    for number, name in enumerate(MISBEHAVIOURS + errors):
        clerk.create(f"x-{name}--{number}@example.com")
        clerk.bulk([f"ok{number}@example.com", f"x-{name}--bulk{number}@example.com"])
    for number, name in enumerate(MISBEHAVIOURS):
        clerk.control("misbehave", {"operation": "ListOrganizationInvitations", "behaviour": name, "times": 1})
        clerk.call("list", "GET", f"{ORGANIZATION}?limit=3&order_by=%2Bcreated_at")


main()
